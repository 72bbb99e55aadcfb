//! The objects that exist in every cluster; written at each start where they are missing.
