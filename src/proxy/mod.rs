//! Services as kernel rules.
