//! Kubernetes quantities: parsing, canonical form, comparison, sums.
//! Amounts are whole nano-units in an `i128`: exact over the whole range the API allows (2⁶³−1).

use serde_json::Value;
use std::cmp::Ordering;
use std::fmt;

#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// How the amount was written, and so is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `1500m`, `2k`
    Decimal,
    /// `1Ki`, `64Mi`
    Binary,
    /// `1e3`
    Exponent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANOS: i128 = 1_000_000_000;
const LARGEST: i128 = i64::MAX as i128 * NANOS;
/// From nano up; each step is a factor of 1000.
const DECIMAL_SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
/// Each step is a factor of 1024.
const BINARY_SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    pub const ZERO: Self = Self { nanos: 0, format: Format::Decimal };

    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (whole, rest) = rest.split_at(digits);
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len()),
            None => ("", rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(QuantityError::Format);
        }
        let (scale, format) = parse_suffix(suffix)?;
        let nanos = scaled(whole, fraction, scale);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }

    /// From JSON: a string, or a number from a careless client.
    pub fn from_value(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => Err(QuantityError::Format),
        }
    }

    pub fn from_units(units: i64) -> Self {
        Self { nanos: i128::from(units) * NANOS, format: Format::Decimal }
    }

    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * 1_000_000, format: Format::Decimal }
    }

    /// Bytes, written with binary suffixes.
    pub fn from_bytes(bytes: u64) -> Self {
        Self { nanos: (i128::from(bytes) * NANOS).min(LARGEST), format: Format::Binary }
    }

    /// Whole units, rounded up (away from zero).
    pub fn value(&self) -> i64 {
        self.rounded_up(NANOS)
    }

    /// Thousandths, rounded up (away from zero).
    pub fn milli_value(&self) -> i64 {
        self.rounded_up(1_000_000)
    }

    fn rounded_up(&self, unit: i128) -> i64 {
        let rounded = if self.nanos >= 0 { (self.nanos + unit - 1) / unit } else { (self.nanos - unit + 1) / unit };
        i64::try_from(rounded).unwrap_or(if rounded > 0 { i64::MAX } else { i64::MIN })
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }
    /// Whether it is a whole number of units.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANOS == 0
    }
    /// Whether it is a whole number of thousandths.
    pub fn is_whole_millis(&self) -> bool {
        self.nanos % 1_000_000 == 0
    }

    /// The sum, in the format of the first summand that is not zero.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: (self.nanos + other.nanos).clamp(-LARGEST, LARGEST), format }
    }

    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.plus(Self { nanos: -other.nanos, format: other.format })
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The canonical form: no fraction, the largest suffix that allows it. Binary amounts that are small
/// or not whole are written decimally.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.nanos.abs() < 1024 * NANOS;
        if self.format == Format::Binary && !small && self.is_whole() {
            let (mantissa, steps) = reduced(self.nanos / NANOS, 1024, BINARY_SUFFIXES.len() - 1);
            return write!(f, "{mantissa}{}", BINARY_SUFFIXES[steps]);
        }
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let (mantissa, steps) = reduced(self.nanos, 1000, DECIMAL_SUFFIXES.len() - 1);
        match (self.format, steps) {
            (Format::Exponent, 3) => write!(f, "{mantissa}"),
            (Format::Exponent, 0..3) => write!(f, "{mantissa}e-{}", 9 - 3 * steps),
            (Format::Exponent, _) => write!(f, "{mantissa}e{}", 3 * steps - 9),
            _ => write!(f, "{mantissa}{}", DECIMAL_SUFFIXES[steps]),
        }
    }
}

/// Divides by `factor` as long as nothing remains.
fn reduced(mut amount: i128, factor: i128, limit: usize) -> (i128, usize) {
    let mut steps = 0;
    while steps < limit && amount != 0 && amount % factor == 0 {
        amount /= factor;
        steps += 1;
    }
    (amount, steps)
}

/// What a suffix multiplies by.
enum Scale {
    /// A power of ten.
    Ten(i32),
    /// A power of two.
    Two(u32),
}

fn parse_suffix(suffix: &str) -> Result<(Scale, Format), QuantityError> {
    if let Some(step) = DECIMAL_SUFFIXES.iter().position(|known| *known == suffix) {
        let step = i32::try_from(step).expect("ten suffixes");
        return Ok((Scale::Ten(3 * step - 9), Format::Decimal));
    }
    if let Some(step) = BINARY_SUFFIXES.iter().position(|known| *known == suffix) {
        let step = u32::try_from(step).expect("seven suffixes");
        return Ok((Scale::Two(10 * step), Format::Binary));
    }
    if let Some(exponent) = suffix.strip_prefix(['e', 'E']) {
        return match exponent.parse::<i32>() {
            Ok(power) => Ok((Scale::Ten(power), Format::Exponent)),
            Err(_) => Err(QuantityError::Suffix),
        };
    }
    let allowed = |c: char| "eEinumkKMGTP+-".contains(c) || c.is_ascii_digit();
    Err(if suffix.chars().all(allowed) { QuantityError::Suffix } else { QuantityError::Format })
}

/// `whole.fraction` times the scale, in nano-units: rounded up where finer, cut at the largest amount.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let (power, factor) = match scale {
        Scale::Ten(power) => (power, 1),
        Scale::Two(power) => (0, 1_i128 << power),
    };
    let fraction_digits = i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let mut mantissa: i128 = 0;
    let mut dropped = 0_i32;
    let mut dropped_nonzero = false;
    for digit in whole.bytes().chain(fraction.bytes()) {
        // 19 digits times the largest binary factor still fit.
        if mantissa < 10_i128.pow(18) {
            mantissa = mantissa * 10 + i128::from(digit - b'0');
        } else {
            dropped += 1;
            dropped_nonzero |= digit != b'0';
        }
    }
    let exponent = power.saturating_add(9).saturating_sub(fraction_digits).saturating_add(dropped);
    let amount = mantissa.saturating_mul(factor);
    match exponent {
        0.. => 10_i128
            .checked_pow(exponent.unsigned_abs())
            .and_then(|ten| amount.checked_mul(ten))
            .unwrap_or(if amount == 0 { 0 } else { LARGEST }),
        _ => divided_up(amount, exponent.unsigned_abs(), dropped_nonzero),
    }
    .min(LARGEST)
}

fn divided_up(amount: i128, power: u32, more: bool) -> i128 {
    let Some(divisor) = 10_i128.checked_pow(power) else {
        return i128::from(amount != 0);
    };
    amount / divisor + i128::from(amount % divisor != 0 || more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantity(text: &str) -> Quantity {
        Quantity::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn the_canonical_form_has_the_largest_suffix_without_a_fraction() {
        let cases = [
            ("0", "0"),
            ("0Mi", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.1", "100m"),
            (".5", "500m"),
            ("1.", "1"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("64Mi", "64Mi"),
            ("1000", "1k"),
            ("1000000k", "1G"),
            ("12e6", "12e6"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("1E", "1E"),
            ("100u", "100u"),
            ("0.0000000001", "1n"),
            ("-1500m", "-1500m"),
            ("+5", "5"),
            ("1.1Ki", "1126400m"),
            ("9999999999999999999999", "9223372036854775807"),
            ("0.5e-3", "500e-6"),
            ("100Ei", "9223372036854775807"),
            ("123456789012345.678", "123456789012345678m"),
        ];
        for (text, canonical) in cases {
            assert_eq!(quantity(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_says_why() {
        let cases = [
            ("", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1x", QuantityError::Format),
            ("1mm", QuantityError::Suffix),
            ("1ki", QuantityError::Suffix),
            ("1 ", QuantityError::Format),
            ("1e", QuantityError::Suffix),
            ("--1", QuantityError::Format),
        ];
        for (text, error) in cases {
            assert_eq!(Quantity::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn values_round_up() {
        for (text, value, milli) in
            [("1", 1, 1000), ("1m", 1, 1), ("1500m", 2, 1500), ("1u", 1, 1), ("-1500m", -2, -1500)]
        {
            assert_eq!((quantity(text).value(), quantity(text).milli_value()), (value, milli), "{text}");
        }
        assert_eq!(quantity("1Gi").value(), 1 << 30);
    }

    #[test]
    fn sums_and_order_are_exact() {
        assert_eq!(quantity("100m").plus(quantity("0.9")).to_string(), "1");
        assert_eq!(Quantity::ZERO.plus(quantity("1Ki")).plus(quantity("1Ki")).to_string(), "2Ki");
        assert_eq!(quantity("1Gi").minus(quantity("512Mi")).to_string(), "512Mi");
        assert!(quantity("1Gi") > quantity("1G"));
        assert_eq!(quantity("1000m"), quantity("1"));
        assert_eq!(Quantity::from_bytes(65536).to_string(), "64Ki");
    }
}
