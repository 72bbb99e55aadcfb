//! OCI images: references, pulls, layers on disk, archives, garbage collection.
