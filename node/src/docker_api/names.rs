//! Names for services whose user gave none.

use deploy::store::Store;

const KINDS: [&str; 32] = [
    "agile", "amber", "bold", "brave", "brisk", "calm", "clever", "copper", "eager", "fair", "gentle", "glad",
    "golden", "happy", "jolly", "keen", "kind", "lively", "lucky", "mellow", "merry", "nimble", "noble", "proud",
    "quick", "quiet", "shy", "silver", "sunny", "swift", "warm", "wise",
];
const FISHES: [&str; 32] = [
    "anchovy", "barbel", "bream", "capelin", "carp", "cod", "dace", "dory", "eel", "gar", "goby", "grayling",
    "gudgeon", "haddock", "hake", "halibut", "herring", "ide", "loach", "mackerel", "minnow", "mullet", "perch",
    "pike", "pilchard", "roach", "salmon", "sardine", "smelt", "sprat", "tench", "trout",
];

/// A name that no service has, chosen by `random`. (Two requests at the same moment may still get the same one; the
/// second is then refused, as any taken name is.)
pub(super) fn free_name(store: &Store, mut random: impl FnMut() -> u64) -> String {
    let number = random();
    let pick = |words: &[&'static str], bits: u64| words[(bits % words.len() as u64) as usize];
    let name = format!("{}_{}", pick(&KINDS, number), pick(&FISHES, number >> 32));
    if store.service_by_name(&name).is_none() {
        return name;
    }
    // More services than names, or bad luck: a number makes it unique.
    loop {
        let longer = format!("{name}{}", random() % 1_000_000);
        if store.service_by_name(&longer).is_none() {
            return longer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_like_and_differ() {
        let store = Store::default();
        let name = |n: u64| free_name(&store, || n);
        assert_eq!(name(0), "agile_anchovy");
        assert_eq!(name(u64::MAX), "wise_trout");
        assert_ne!(name(1), name(2));
        let words = KINDS.iter().chain(&FISHES);
        assert!(words.clone().all(|w| w.bytes().all(|b| b.is_ascii_lowercase())));
    }
}
