//! Wires a node: runtime, network, kubelet, proxy, DNS.
