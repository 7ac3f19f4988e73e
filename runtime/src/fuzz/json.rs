//! Changes JSON documents so that they stay JSON, and mostly nearly what they were.

use serde_json::{Map, Value, json};

use super::engine::Source;

/// Changes a document in a place or three.
pub(crate) fn change(source: &mut Source, document: &mut Value) {
    for _ in 0..1 + source.below(3) {
        let mut count = 0;
        visit(document, &mut |_| count += 1);
        let wanted = source.below(count);
        let other = {
            let (mut nth, from) = (0, source.below(count));
            let mut found = Value::Null;
            visit(document, &mut |value| {
                if nth == from {
                    found = value.clone();
                }
                nth += 1;
            });
            found
        };
        let mut nth = 0;
        visit(document, &mut |value| {
            if nth == wanted {
                change_value(source, value, &other);
            }
            nth += 1;
        });
    }
}

fn visit(value: &mut Value, see: &mut dyn FnMut(&mut Value)) {
    see(value);
    match value {
        Value::Array(list) => list.iter_mut().for_each(|value| visit(value, see)),
        Value::Object(map) => map.values_mut().for_each(|value| visit(value, see)),
        _ => {}
    }
}

fn change_value(source: &mut Source, value: &mut Value, other: &Value) {
    if source.one_in(3) {
        *value = any(source, other);
        return;
    }
    match value {
        Value::Object(map) => change_map(source, map, other),
        Value::Array(list) => {
            let at = source.below(list.len());
            match source.below(5) {
                0 if !list.is_empty() => drop(list.remove(at)),
                1 if !list.is_empty() => list.insert(at, list[at].clone()),
                2 => list.push(any(source, other)),
                3 => list.reverse(),
                _ => *value = vec![any(source, other); source.below(300)].into(),
            }
        }
        Value::String(text) => {
            let mut bytes = std::mem::take(text).into_bytes();
            source.mangle(&mut bytes);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        _ => *value = any(source, other),
    }
}

fn change_map(source: &mut Source, map: &mut Map<String, Value>, other: &Value) {
    let keys: Vec<String> = map.keys().cloned().collect();
    let key = keys.get(source.below(keys.len())).cloned().unwrap_or_default();
    match source.below(4) {
        0 => drop(map.remove(&key)),
        1 => drop(map.insert(key, any(source, other))),
        2 => drop(map.insert(key.to_uppercase(), any(source, other))),
        // What another object of the document has.
        _ => drop(other.as_object().map(|other| map.extend(other.clone()))),
    }
}

fn any(source: &mut Source, other: &Value) -> Value {
    match source.below(14) {
        0 => Value::Null,
        1 => json!(source.one_in(2)),
        2 => json!(*source.pick(&[&0_i64, &1, &-1, &i64::MIN, &i64::MAX, &4_294_967_295, &2_147_483_648, &1000])),
        3 => json!(u64::MAX),
        4 => json!(*source.pick(&[&0.5, &-0.0, &1e300])),
        5 => json!(""),
        6 => {
            json!(source.pick(&["/", "..", "../..", "/../x", "\0", "sha256:", "a\u{202e}b", "-1", "*", "linux", "\\"]))
        }
        7 => json!("x".repeat(source.below(5000))),
        8 => json!([]),
        9 => json!({}),
        10 => (0..source.below(70)).fold(json!(0), |inner, _| json!([inner])),
        _ => other.clone(),
    }
}
