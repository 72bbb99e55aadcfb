//! Checked configuration of a server and a node.
