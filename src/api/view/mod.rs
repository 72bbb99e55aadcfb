//! Small typed views for the loops: only the fields a loop reads, never written back.

pub mod meta;
pub mod pod;
