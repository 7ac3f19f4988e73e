//! `--secret key`, `--config source=conf,target=/etc/app.conf,mode=0440`.

use super::fields;
use crate::docker_api::wire::{ConfigReference, FileTarget, SecretReference};

/// A reference whose id is not known yet.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) struct PayloadFlag {
    /// Name or id.
    pub(in crate::cli) source: String,
    /// Where it appears, and whose it is there.
    pub(in crate::cli) file: FileTarget,
}

impl PayloadFlag {
    /// As a secret.
    pub(in crate::cli) fn secret(&self) -> SecretReference {
        SecretReference { file: Some(self.file.clone()), id: None, name: Some(self.source.clone()) }
    }

    /// As a config.
    pub(in crate::cli) fn config(&self) -> ConfigReference {
        ConfigReference { file: Some(self.file.clone()), runtime: None, id: None, name: Some(self.source.clone()) }
    }
}

/// Reads one `--secret` or `--config`.
pub(in crate::cli) fn parse_payload(text: &str) -> Result<PayloadFlag, String> {
    let mut flag = PayloadFlag {
        source: String::new(),
        file: FileTarget { name: None, uid: Some("0".to_owned()), gid: Some("0".to_owned()), mode: Some(0o444) },
    };
    let given = fields(text)?;
    if let [(_, value)] = &given[..]
        && value.is_empty()
    {
        // `fields` makes keys lower-case; a name is taken as it stands.
        flag.source = text.trim_matches('"').to_owned();
    } else {
        for (key, value) in given {
            set(&mut flag, &key, value)?;
        }
    }
    if flag.source.is_empty() {
        return Err("the source is missing".to_owned());
    }
    flag.file.name.get_or_insert_with(|| flag.source.clone());
    Ok(flag)
}

fn set(flag: &mut PayloadFlag, key: &str, value: String) -> Result<(), String> {
    let number = |value: String| match value.parse::<u32>() {
        Ok(_) => Ok(Some(value)),
        Err(_) => Err(format!("{key} {value:?} must be a number")),
    };
    match key {
        "source" | "src" => flag.source = value,
        "target" => flag.file.name = Some(value).filter(|target| !target.is_empty()),
        "uid" => flag.file.uid = number(value)?,
        "gid" => flag.file.gid = number(value)?,
        "mode" => {
            let mode = u32::from_str_radix(&value, 8).ok().filter(|mode| *mode <= 0o7777);
            flag.file.mode = Some(mode.ok_or_else(|| format!("mode {value:?} must be octal, like 0440"))?);
        }
        _ => return Err(format!("unknown key {key:?}: there are source, target, uid, gid, mode")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(&str, &str, &str, u32), &str>) {
        let shown = parse_payload(text).map(|flag| {
            let file = flag.file;
            (flag.source, file.name.unwrap_or_default(), file.uid.unwrap_or_default(), file.mode.unwrap_or_default())
        });
        let shown =
            shown.as_ref().map(|(source, name, uid, mode)| (source.as_str(), name.as_str(), uid.as_str(), *mode));
        match (shown, expected) {
            (Ok(shown), Ok(expected)) => assert_eq!(shown, expected, "{text}"),
            (Err(shown), Err(word)) => assert!(shown.contains(word), "{text}: {shown}"),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn references_are_read() {
        check("Key", Ok(("Key", "Key", "0", 0o444)));
        check("source=key,target=/etc/k,uid=7,gid=8,mode=0400", Ok(("key", "/etc/k", "7", 0o400)));
        check("src=key,target=", Ok(("key", "key", "0", 0o444)));
        check("target=/x", Err("source"));
        check("source=k,uid=web", Err("number"));
        check("source=k,mode=9", Err("octal"));
        check("source=k,owner=1", Err("owner"));
        check("", Err("empty"));
    }
}
