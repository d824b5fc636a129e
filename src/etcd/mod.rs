//! Edge: list, watch, relist, heartbeat and registration. The only user of `etcd_client`.
