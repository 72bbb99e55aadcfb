//! The `Table` form of objects that kubectl prints.
