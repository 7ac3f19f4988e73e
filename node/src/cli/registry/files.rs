//! The files that a user's credentials for registries are in, of Docker's form.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use runtime::image::registry::{Credentials, Secret};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::error::CliError;
use super::super::output;

/// What Docker calls its own registry in its file.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";
/// Names for it that users write.
const DOCKER_NAMES: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// Bytes of a file with credentials.
const MAX_FILE: u64 = 1 << 20;

/// Docker's form: what is not understood is kept as it is.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct CredentialFile {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    auths: BTreeMap<String, Value>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

/// Where a user's credentials are.
#[derive(Clone, Debug)]
pub(in crate::cli) struct CredentialFiles {
    /// Written and read.
    pub(super) own: PathBuf,
    /// Read only.
    docker: Option<PathBuf>,
}

impl CredentialFiles {
    /// Those of whoever runs the command.
    pub(in crate::cli) fn of_user() -> Self {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = var("HOME").unwrap_or_else(|| "/root".into());
        Self {
            own: var("SHOAL_REGISTRY_FILE").unwrap_or_else(|| home.join(".shoal/registries.json")),
            docker: Some(var("DOCKER_CONFIG").unwrap_or_else(|| home.join(".docker")).join("config.json")),
        }
    }

    /// The credentials for a registry, as names of images call it; nobody's where there are none.
    pub(in crate::cli) fn read(&self, registry: &str) -> Result<Credentials, CliError> {
        for path in [Some(&self.own), self.docker.as_ref()].into_iter().flatten() {
            let file = read(path)?;
            for key in keys(registry) {
                let Some(entry) = file.auths.get(&key) else { continue };
                let credentials = Credentials::from_json(entry.to_string().as_bytes())
                    .map_err(|e| CliError::usage(format!("{}: {key}: {e}", path.display())))?;
                if credentials != Credentials::Anonymous {
                    return Ok(credentials);
                }
            }
            let helpers = file.other.get("credHelpers");
            let helped = keys(registry).iter().any(|key| helpers.is_some_and(|helpers| helpers.get(key).is_some()))
                || file.other.contains_key("credsStore") && keys(registry).iter().any(|k| file.auths.contains_key(k));
            if helped {
                output::note(format_args!(
                    "shoal: {} leaves the credentials for {registry} to another program, which is not asked: use \
                     `shoal registry login {registry}`",
                    path.display()
                ));
            }
        }
        Ok(Credentials::Anonymous)
    }

    pub(super) fn keep(&self, registry: &str, username: &str, password: &str) -> Result<(), CliError> {
        let mut file = read(&self.own)?;
        let auth = STANDARD.encode(format!("{username}:{}", Secret::new(password).expose()));
        file.auths.insert(key(registry), json!({ "auth": auth }));
        write(&self.own, &file)
    }

    pub(super) fn forget(&self, registry: &str) -> Result<(), CliError> {
        let mut file = read(&self.own)?;
        let known = keys(registry).iter().filter(|key| file.auths.remove(*key).is_some()).count();
        if known == 0 {
            return Err(CliError::usage(format!("not logged in to {registry}")));
        }
        write(&self.own, &file)
    }
}

/// What a registry is called in the file.
pub(super) fn key(registry: &str) -> String {
    let bare = registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://")).unwrap_or(registry);
    let host = bare.split('/').next().unwrap_or_default();
    if DOCKER_NAMES.contains(&host) { DOCKER_KEY.to_owned() } else { host.to_owned() }
}

/// What a registry may be called in the file; older ones have addresses.
fn keys(registry: &str) -> [String; 3] {
    let key = key(registry);
    [key.clone(), format!("https://{key}"), format!("https://{key}/v1/")]
}

fn read(path: &Path) -> Result<CredentialFile, CliError> {
    let failed = |e: std::io::Error| CliError::usage(format!("cannot read {}: {e}", path.display()));
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(CredentialFile::default()),
        Err(e) => return Err(failed(e)),
        Ok(found) if found.len() > MAX_FILE => {
            return Err(CliError::usage(format!("{} is too large to hold credentials", path.display())));
        }
        Ok(_) => {}
    }
    let text = std::fs::read(path).map_err(failed)?;
    // The parser's own words could hold a part of the file.
    serde_json::from_slice(&text)
        .map_err(|e| CliError::usage(format!("{} is not valid JSON (line {})", path.display(), e.line())))
}

/// Replaces the file; only its owner may read it.
fn write(path: &Path, file: &CredentialFile) -> Result<(), CliError> {
    let failed = |e: std::io::Error| CliError::Failed(format!("cannot write {}: {e}", path.display()));
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(failed)?;
    let text = serde_json::to_vec_pretty(file).map_err(|e| failed(e.into()))?;
    // Made with mode 0600.
    let mut new = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    new.write_all(&text).and_then(|()| new.as_file().sync_all()).map_err(failed)?;
    new.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> CredentialFiles {
        CredentialFiles { own: dir.join("own/registries.json"), docker: Some(dir.join("config.json")) }
    }

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic { username: username.into(), password: Secret::new(password) }
    }

    #[test]
    fn credentials_are_kept_and_forgotten() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        assert_eq!(files.read("r.example:5000").unwrap(), Credentials::Anonymous);
        files.keep("https://r.example:5000/v2/", "ann", "p:w").unwrap();
        files.keep("docker.io", "bob", "x").unwrap();
        assert_eq!(files.read("r.example:5000").unwrap(), basic("ann", "p:w"));
        assert_eq!(files.read("docker.io").unwrap(), basic("bob", "x"));
        assert_eq!(files.read("r.example").unwrap(), Credentials::Anonymous);
        let mode = std::fs::metadata(&files.own).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        files.forget("r.example:5000").unwrap();
        assert_eq!(files.read("r.example:5000").unwrap(), Credentials::Anonymous);
        assert!(files.forget("r.example:5000").is_err());
    }

    #[test]
    fn dockers_file_is_read_and_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        let text = json!({
            "auths": {
                "https://index.docker.io/v1/": {"auth": STANDARD.encode("ann:a")},
                "https://old.example/v1/": {"auth": STANDARD.encode("bob:b")},
                "id.example": {"identitytoken": "t"},
                "helped.example": {},
            },
            "credsStore": "desktop",
        })
        .to_string();
        std::fs::write(dir.path().join("config.json"), &text).unwrap();
        assert_eq!(files.read("docker.io").unwrap(), basic("ann", "a"));
        assert_eq!(files.read("old.example").unwrap(), basic("bob", "b"));
        assert_eq!(files.read("id.example").unwrap(), Credentials::Identity(Secret::new("t")));
        assert_eq!(files.read("helped.example").unwrap(), Credentials::Anonymous);
        files.keep("docker.io", "eve", "e").unwrap();
        assert_eq!(files.read("docker.io").unwrap(), basic("eve", "e"), "one's own come first");
        assert_eq!(std::fs::read_to_string(dir.path().join("config.json")).unwrap(), text);
    }

    #[test]
    fn damaged_files_do_not_show_what_they_hold() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        std::fs::write(dir.path().join("config.json"), r#"{"auths": {"r": {"auth": "c2VjcmV0"}}, secret"#).unwrap();
        let error = files.read("r").unwrap_err().to_string();
        assert!(error.contains("config.json") && !error.contains("secret") && !error.contains("c2Vj"), "{error}");
        std::fs::write(dir.path().join("config.json"), r#"{"auths": {"r": {"auth": "%%%"}}}"#).unwrap();
        assert!(files.read("r").is_err());
    }
}
