//! The `filters` of list requests.
//!
//! Two shapes are in use: `{"key":{"value":true}}` (Docker's command line) and `{"key":["value"]}` (docker-py, people
//! with curl). Within a key any value may match, and every key must.

use std::collections::{BTreeMap, BTreeSet};

use deploy::model::Labels;
use serde::Deserialize;

use super::error::ApiError;

/// More than any client sends; keeps a request from making a list slow.
const MAX_VALUES: usize = 1024;

/// Parsed filters.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Filters {
    keys: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    Map(BTreeMap<String, bool>),
    List(Vec<String>),
}

impl Filters {
    /// Reads the query parameter; an empty one filters nothing.
    pub(crate) fn parse(text: &str, accepted: &[&str]) -> Result<Self, ApiError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let parsed: Option<BTreeMap<String, Values>> =
            serde_json::from_str(text).map_err(|e| ApiError::invalid(format!("invalid filters: {e}")))?;
        let mut keys = BTreeMap::new();
        for (key, values) in parsed.unwrap_or_default() {
            if !accepted.contains(&key.as_str()) {
                return Err(ApiError::invalid(format!("invalid filter '{key}'")));
            }
            let values: BTreeSet<String> = match values {
                Values::Map(map) => map.into_keys().collect(),
                Values::List(list) => list.into_iter().collect(),
            };
            if values.len() > MAX_VALUES {
                return Err(ApiError::invalid(format!("too many values for filter '{key}'")));
            }
            if !values.is_empty() {
                keys.insert(key, values);
            }
        }
        Ok(Self { keys })
    }

    /// The values of a key; `None` if it does not filter.
    pub(crate) fn values(&self, key: &str) -> Option<&BTreeSet<String>> {
        self.keys.get(key)
    }

    /// Whether the key does not filter or one of its values passes.
    pub(crate) fn any(&self, key: &str, passes: impl FnMut(&str) -> bool) -> bool {
        let mut passes = passes;
        self.values(key).is_none_or(|values| values.iter().any(|v| passes(v)))
    }

    /// Whether the value is one of those asked for.
    pub(crate) fn exact(&self, key: &str, value: &str) -> bool {
        self.any(key, |wanted| wanted == value)
    }

    /// Whether the value begins with one of those asked for.
    pub(crate) fn prefix(&self, key: &str, value: &str) -> bool {
        self.any(key, |wanted| value.starts_with(wanted))
    }

    /// Whether the labels have one of those asked for: `key` or `key=value`.
    pub(crate) fn labels(&self, key: &str, labels: &Labels) -> bool {
        self.any(key, |wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|v| v == value),
            None => labels.contains_key(wanted),
        })
    }

    /// A yes-or-no filter (`dangling`).
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ApiError> {
        let Some(values) = self.values(key) else { return Ok(None) };
        match values.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["1" | "true" | "True" | "TRUE" | "t" | "T"] => Ok(Some(true)),
            ["0" | "false" | "False" | "FALSE" | "f" | "F"] => Ok(Some(false)),
            _ => Err(ApiError::invalid(format!("invalid filter '{key}={values:?}'"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, value: &str, expected: Result<bool, &str>) {
        let got = Filters::parse(text, &["name"]).map(|f| f.exact("name", value)).map_err(|e| e.message);
        assert_eq!(got, expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn both_shapes_are_read() {
        check(r#"{"name":{"web":true}}"#, "web", Ok(true));
        check(r#"{"name":["web","db"]}"#, "db", Ok(true));
        check(r#"{"name":["web","db"]}"#, "x", Ok(false));
        check(r#"{"name":[]}"#, "x", Ok(true));
        check("", "x", Ok(true));
        check("null", "x", Ok(true));
        check("{}", "x", Ok(true));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        check(r#"{"zz":["a"]}"#, "x", Err("invalid filter 'zz'"));
        for text in ["zz", "[", r#"{"name":1}"#, r#"{"name":[1]}"#, r#"["name"]"#, &"[".repeat(10_000)] {
            assert!(Filters::parse(text, &["name"]).is_err(), "{text}");
        }
    }

    #[test]
    fn labels_match_by_key_or_by_key_and_value() {
        let labels = Labels::from([("a".to_owned(), "b=c".to_owned())]);
        let with = |text: &str| Filters::parse(text, &["label"]).unwrap().labels("label", &labels);
        assert!(with(r#"{"label":["a"]}"#));
        assert!(with(r#"{"label":["a=b=c"]}"#));
        assert!(!with(r#"{"label":["a=b"]}"#));
    }
}
