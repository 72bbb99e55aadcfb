//! One ordered list of admission plugins; a file per plugin.
