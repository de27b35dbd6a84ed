//! Who holds another value than the others.

use std::collections::BTreeMap;

/// Ranks that are named at most.
const NAMED: usize = 8;

/// Says who has what, the fewest ranks first, unless all values, by rank, are the same.
pub(super) fn check(values: &[String]) -> Result<(), String> {
    let mut holders: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (rank, value) in values.iter().enumerate() {
        holders.entry(value).or_default().push(rank);
    }
    if holders.len() < 2 {
        return Ok(());
    }
    let mut groups: Vec<(&str, Vec<usize>)> = holders.into_iter().collect();
    groups.sort_by_key(|(_, ranks)| (ranks.len(), ranks[0]));
    let majority = groups.pop_if(|(_, ranks)| 2 * ranks.len() > values.len());
    let mut parts: Vec<String> =
        groups.iter().take(NAMED).map(|(value, ranks)| has(&ranks_in_words(ranks), value)).collect();
    if groups.len() > NAMED {
        parts.push(format!("{} more have values of their own", groups.len() - NAMED));
    }
    if let Some((value, ranks)) = majority {
        parts.push(has(&format!("all {} others have", ranks.len()), value));
    }
    Err(parts.join(", "))
}

fn has(who: &str, value: &str) -> String {
    format!("{who} {value}")
}

fn ranks_in_words(ranks: &[usize]) -> String {
    let named: Vec<String> = ranks.iter().take(NAMED).map(usize::to_string).collect();
    let more = if ranks.len() > NAMED { " .." } else { "" };
    match ranks {
        [rank] => format!("rank {rank} has"),
        _ => format!("ranks {}{more} have", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(values: &[u8]) -> Option<String> {
        check(&values.iter().map(|value| format!("ab{value:02x}")).collect::<Vec<_>>()).err()
    }

    #[test]
    fn the_few_are_named() {
        assert_eq!(who(&[7]), None);
        assert_eq!(who(&[7, 7, 7]), None);
        assert_eq!(who(&[7, 8]).unwrap(), "rank 0 has ab07, rank 1 has ab08");
        assert_eq!(who(&[7, 7, 8, 7]).unwrap(), "rank 2 has ab08, all 3 others have ab07");
        assert_eq!(
            who(&[7, 9, 8, 7, 9, 7, 7]).unwrap(),
            "rank 2 has ab08, ranks 1, 4 have ab09, all 4 others have ab07"
        );
        assert_eq!(who(&[7, 8, 7, 8]).unwrap(), "ranks 0, 2 have ab07, ranks 1, 3 have ab08");
        let ranks = who(&(0..20).collect::<Vec<u8>>()).unwrap();
        assert!(ranks.ends_with("rank 7 has ab07, 12 more have values of their own"), "{ranks}");
    }
}
