//! Hosts in private namespaces with an etcd of their own: what the demo and the end-to-end tests run on.
