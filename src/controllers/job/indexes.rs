//! Completion indexes as a status writes them: `0,2-4,7`. Pure.

use std::collections::BTreeSet;

/// What cannot be read is left out.
pub fn parse(text: &str) -> BTreeSet<i64> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i64>(), last.parse::<i64>()) {
            indexes.extend(first..=last);
        }
    }
    indexes
}

/// Runs of three and more, and of two, are written as ranges and as pairs.
pub fn format(indexes: &BTreeSet<i64>) -> String {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let words = runs.into_iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_read_back_as_they_were_written() {
        for text in ["", "0", "0,1", "0-2", "1,3-5,7,9,10"] {
            assert_eq!(format(&parse(text)), text);
        }
        assert_eq!(parse("1-3,x,5").into_iter().collect::<Vec<_>>(), [1, 2, 3, 5]);
    }
}
