//! Label and field selectors: the string forms of list and watch, and the `LabelSelector` of specs.
//! Syntax errors are worded as upstream's (k8s.io/apimachinery/pkg/labels and .../fields).

mod field;
mod label;

pub use field::FieldSelector;
pub use label::{Operator, Requirement, Selector, SelectorError};
