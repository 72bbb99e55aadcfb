//! The patch types: JSON Patch, merge patch, strategic merge patch.
