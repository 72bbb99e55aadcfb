//! Pure API machinery: objects, the scheme, codecs, patches, selectors, quantities, `Status`, `Table`.
//! Nothing here does I/O, reads a clock or draws a random number.

pub mod codec;
pub mod fencing;
pub mod kinds;
pub mod object;
pub mod patch;
pub mod quantity;
pub mod resources;
pub mod scheme;
pub mod selector;
pub mod status;
pub mod table;
pub mod validation;
pub mod view;

/// The Kubernetes version whose API this is.
pub const KUBERNETES: &str = "1.36.2";
