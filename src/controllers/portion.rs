//! A number, or a percentage of a whole: how budgets and bounds of rollouts are written.

use serde_json::Value;

/// Never negative; what is neither a number nor a percentage is 0.
pub fn portion(value: &Value, total: i64, up: bool) -> i64 {
    if let Some(number) = value.as_i64() {
        return number.max(0);
    }
    let percent = value.as_str().and_then(|text| text.strip_suffix('%')).and_then(|text| text.parse::<i64>().ok());
    let product = percent.unwrap_or(0).max(0).saturating_mul(total);
    if up { product.saturating_add(99) / 100 } else { product / 100 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn percentages_round_as_asked() {
        for (value, total, up, expected) in [
            (json!(3), 10, true, 3),
            (json!(-3), 10, true, 0),
            (json!("25%"), 10, true, 3),
            (json!("25%"), 10, false, 2),
            (json!("100%"), 7, false, 7),
            (json!("x"), 7, true, 0),
            (Value::Null, 7, true, 0),
        ] {
            assert_eq!(portion(&value, total, up), expected, "{value} of {total}");
        }
    }
}
