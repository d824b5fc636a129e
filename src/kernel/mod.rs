//! Edge: namespaces, sockets, encoding, decoding, batches and events. The only user of netlink.
