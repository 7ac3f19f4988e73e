//! The Dockerfile lines that `docker import --change` takes.

use super::config::ImageConfig;
use super::error::ImageError;

/// What an import sets in the new image's configuration. Later lines win over earlier ones, except
/// for environment, labels, ports and volumes, which add up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportChanges {
    /// `CMD`.
    pub cmd: Vec<String>,
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `ENV`, as `NAME=value`.
    pub env: Vec<String>,
    /// `WORKDIR`.
    pub working_dir: String,
    /// `USER`.
    pub user: String,
    /// `EXPOSE`, as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// `LABEL`.
    pub labels: Vec<(String, String)>,
    /// `STOPSIGNAL`.
    pub stop_signal: Option<String>,
    /// `VOLUME`.
    pub volumes: Vec<String>,
}

impl ImportChanges {
    /// Reads lines such as `CMD ["sh"]`. A line that is not understood is an error; nothing is
    /// skipped silently.
    pub fn parse<S: AsRef<str>>(lines: &[S]) -> Result<ImportChanges, ImageError> {
        let mut changes = ImportChanges::default();
        for line in lines {
            let line = line.as_ref().trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            changes
                .apply(line)
                .map_err(|reason| ImageError::BadChange { line: line.chars().take(200).collect(), reason })?;
        }
        Ok(changes)
    }

    fn apply(&mut self, line: &str) -> Result<(), String> {
        let (instruction, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(format!("{instruction} needs an argument"));
        }
        match instruction.to_ascii_uppercase().as_str() {
            "CMD" => self.cmd = command(rest)?,
            "ENTRYPOINT" => self.entrypoint = command(rest)?,
            "ENV" => {
                for (name, value) in pairs(rest)? {
                    let prefix = format!("{name}=");
                    self.env.retain(|pair| !pair.starts_with(&prefix));
                    self.env.push(format!("{prefix}{value}"));
                }
            }
            "LABEL" => self.labels.extend(pairs(rest)?),
            "WORKDIR" => self.working_dir = one_word(rest)?,
            "USER" => self.user = one_word(rest)?,
            "STOPSIGNAL" => self.stop_signal = Some(one_word(rest)?),
            "EXPOSE" => {
                for word in words(rest)? {
                    self.exposed_ports.push(port(&word)?);
                }
            }
            "VOLUME" => {
                if rest.starts_with('[') {
                    self.volumes.extend(json_strings(rest)?);
                } else {
                    self.volumes.extend(words(rest)?);
                }
            }
            other => {
                return Err(format!(
                    "{other} is not one of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR"
                ));
            }
        }
        Ok(())
    }

    /// The configuration of an image that is made with these changes.
    pub(crate) fn into_config(self) -> ImageConfig {
        ImageConfig {
            entrypoint: self.entrypoint,
            cmd: self.cmd,
            env: self.env,
            working_dir: self.working_dir,
            user: self.user,
            labels: self.labels.into_iter().collect(),
            exposed_ports: self.exposed_ports,
            volumes: self.volumes,
            stop_signal: self.stop_signal,
            ..ImageConfig::default()
        }
    }
}

/// The exec form (a JSON list) or the shell form, which Docker hands to `/bin/sh -c`.
fn command(text: &str) -> Result<Vec<String>, String> {
    if text.starts_with('[')
        && let Ok(list) = json_strings(text)
    {
        return Ok(list);
    }
    Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()])
}

fn json_strings(text: &str) -> Result<Vec<String>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON list of strings: {error}"))
}

fn one_word(text: &str) -> Result<String, String> {
    match words(text)?.as_slice() {
        [word] => Ok(word.clone()),
        _ => Err("exactly one argument is needed".to_owned()),
    }
}

/// `A=b C="d e"`, or the old form `A b c` for a single pair.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.split(char::is_whitespace).next().unwrap_or(text);
    if !first.contains('=') {
        let (name, value) =
            text.split_once(char::is_whitespace).ok_or_else(|| format!("{text:?} is not NAME=value"))?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    words(text)?
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("{word:?} is not NAME=value")),
        })
        .collect()
}

/// Splits at blanks, minding quotes and backslashes.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(open), close) if open == close => quote = None,
            (None, '"' | '\'') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (Some('"') | None, '\\') => {
                let escaped = chars.next().ok_or("it ends with a backslash")?;
                word.get_or_insert_default().push(escaped);
            }
            (None, blank) if blank.is_whitespace() => words.extend(word.take()),
            (_, other) => word.get_or_insert_default().push(other),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

/// `80` and `80/udp` become `80/tcp` and `80/udp`.
fn port(text: &str) -> Result<String, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !number.parse::<u16>().is_ok_and(|number| number != 0) {
        return Err(format!("{text:?} is not a port between 1 and 65535"));
    }
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("{text:?} is neither tcp, udp nor sctp"));
    }
    Ok(format!("{number}/{protocol}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockerfile_lines_become_configuration() {
        let changes = ImportChanges::parse(&[
            r#"CMD ["a", "b c"]"#,
            "entrypoint /bin/run it",
            r#"ENV A=1 B="two words" C=x\ y"#,
            "ENV A two",
            "ENV OLD some value",
            "WORKDIR /srv",
            "USER 1000:1000",
            "EXPOSE 80 53/UDP",
            "LABEL k=v 'quoted key=w'",
            "STOPSIGNAL SIGQUIT",
            r#"VOLUME ["/a", "/b"]"#,
            "VOLUME /c /d",
            "",
            "# a remark",
        ])
        .unwrap();
        assert_eq!(changes.cmd, ["a", "b c"]);
        assert_eq!(changes.entrypoint, ["/bin/sh", "-c", "/bin/run it"]);
        assert_eq!(changes.env, ["B=two words", "C=x y", "A=two", "OLD=some value"]);
        assert_eq!(changes.working_dir, "/srv");
        assert_eq!(changes.user, "1000:1000");
        assert_eq!(changes.exposed_ports, ["80/tcp", "53/udp"]);
        assert_eq!(changes.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(changes.volumes, ["/a", "/b", "/c", "/d"]);
        let config = changes.into_config();
        assert_eq!(config.labels["quoted key"], "w");
    }

    #[test]
    fn lines_that_are_not_understood_are_named() {
        for line in
            ["RUN x", "CMD", "EXPOSE http", "EXPOSE 0", "EXPOSE 1/icmp", "ENV A", "LABEL 'x", "USER a b", "VOLUME [1]"]
        {
            let error = ImportChanges::parse(&[line]).unwrap_err();
            assert!(matches!(&error, ImageError::BadChange { line: named, .. } if named == line), "{error}");
        }
    }
}
