//! Names of plain containers: which ones a user may give, and one for who gives none.

/// Two lists whose pairs are names.
const KINDS: [&str; 24] = [
    "amber", "brave", "brisk", "calm", "clear", "deep", "fair", "fleet", "free", "glad", "green", "keen", "kind",
    "light", "merry", "mild", "quick", "quiet", "shy", "still", "swift", "warm", "wild", "wise",
];
const FISH: [&str; 24] = [
    "barb", "bleak", "bream", "carp", "char", "chub", "cod", "dace", "eel", "goby", "herring", "loach", "minnow",
    "perch", "pike", "roach", "rudd", "salmon", "smelt", "sprat", "tench", "trout", "turbot", "wrasse",
];

/// Docker's rule: a letter or digit, then letters, digits, `_`, `.` and `-`, two at the least; and no more than 255.
pub(crate) fn is_name(name: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (2..=255).contains(&name.len())
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && name.bytes().all(inside)
}

/// A name that is free. `number` is random, and decides which.
pub(super) fn choose(number: u64, is_taken: impl Fn(&str) -> bool) -> String {
    let pick = |list: &[&'static str], number: u64| list[(number % list.len() as u64) as usize];
    let name = format!("{}_{}", pick(&KINDS, number), pick(&FISH, number / KINDS.len() as u64));
    if !is_taken(&name) {
        return name;
    }
    // Of all numbers, containers have taken only some.
    (1u32..).map(|count| format!("{name}{count}")).find(|name| !is_taken(name)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["web", "a1", "9.b-c_d"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a", "-ab", "_ab", "a/b", "a b", "ä1", &"a".repeat(256)] {
            assert!(!is_name(bad), "{bad}");
        }
        let first = choose(7, |_| false);
        assert!(is_name(&first) && first.contains('_'));
        assert_eq!(choose(7, |name| name == first), format!("{first}1"));
    }
}
