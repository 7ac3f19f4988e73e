//! Who one is to a registry: credentials, what a registry asks for, and tokens.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use hyper::HeaderMap;
use hyper::header::{HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

/// Bytes of a challenge that are read.
const MAX_CHALLENGE_BYTES: usize = 8 << 10;
/// Bytes of an `X-Registry-Auth` header that are read.
const MAX_AUTH_BYTES: usize = 64 << 10;
/// What a token is good for where its answer does not say.
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(60);
const MAX_TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// Something that must not be shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Who one is to a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// A user with a password.
    Basic {
        /// The user's name.
        username: String,
        /// Their password, or an access token that serves as one.
        password: Secret,
    },
    /// A token that tokens are given for.
    Identity(Secret),
    /// A token for the registry itself.
    Bearer(Secret),
}

/// Where the credentials for a registry come from, which may change while a pull goes on.
pub trait CredentialSource: Send + Sync + fmt::Debug {
    /// Those to begin with.
    fn first(&self) -> Credentials;
    /// Others, after the registry has refused `refused`; `None` where there are no others.
    fn after(&self, refused: &Credentials) -> Option<Credentials>;
}

/// These, and no others.
impl CredentialSource for Credentials {
    fn first(&self) -> Credentials {
        self.clone()
    }

    fn after(&self, _: &Credentials) -> Option<Credentials> {
        None
    }
}

/// One after the other; nobody's where there are none.
impl CredentialSource for Vec<Credentials> {
    fn first(&self) -> Credentials {
        self.as_slice().first().cloned().unwrap_or_default()
    }

    fn after(&self, refused: &Credentials) -> Option<Credentials> {
        let place = self.iter().position(|one| one == refused)?;
        self[place + 1..].iter().find(|other| *other != refused).cloned()
    }
}

/// What is wrong with credentials that a client sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid registry credentials: {reason}")]
pub struct BadCredentials {
    reason: &'static str,
}

/// Docker's form of credentials.
#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthConfig {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

impl Credentials {
    /// Reads Docker's `X-Registry-Auth` header: an `AuthConfig` as JSON in base64. Empty means nobody.
    pub fn from_header(header: &str) -> Result<Credentials, BadCredentials> {
        let bad = |reason| BadCredentials { reason };
        let text = header.trim();
        if text.is_empty() {
            return Ok(Credentials::Anonymous);
        }
        if text.len() > MAX_AUTH_BYTES {
            return Err(bad("they are too long"));
        }
        let text = text.trim_end_matches('=');
        let json = URL_SAFE_NO_PAD
            .decode(text)
            .or_else(|_| base64::engine::general_purpose::STANDARD_NO_PAD.decode(text))
            .map_err(|_| bad("they are not base64"))?;
        Credentials::from_json(&json)
    }

    /// Reads an `AuthConfig`: the body of Docker's `POST /auth`.
    pub fn from_json(json: &[u8]) -> Result<Credentials, BadCredentials> {
        let bad = |reason| BadCredentials { reason };
        if json.len() > MAX_AUTH_BYTES {
            return Err(bad("they are too long"));
        }
        // A list would be taken for an object's fields in their order.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(bad("they are not an AuthConfig"));
        }
        // Clients in other languages than Go write Go's names of the fields, which Go reads in any case.
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(json).map_err(|_| bad("they are not an AuthConfig"))?;
        let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
        let fields = fields.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        let mut config: AuthConfig =
            serde_json::from_value(serde_json::Value::Object(fields)).map_err(|_| bad("they are not an AuthConfig"))?;
        if !config.auth.is_empty() {
            let both = STANDARD.decode(&config.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let both = both.ok_or_else(|| bad("auth is not base64"))?;
            let (username, password) = both.split_once(':').ok_or_else(|| bad("auth has no colon"))?;
            config.username = username.to_owned();
            config.password = password.trim_end_matches('\0').to_owned();
        }
        if !config.registrytoken.is_empty() {
            return Ok(Credentials::Bearer(Secret(config.registrytoken)));
        }
        if !config.identitytoken.is_empty() {
            return Ok(Credentials::Identity(Secret(config.identitytoken)));
        }
        if config.username.is_empty() && config.password.is_empty() {
            return Ok(Credentials::Anonymous);
        }
        if config.username.contains(':') {
            return Err(bad("a user's name cannot hold a colon"));
        }
        Ok(Credentials::Basic { username: config.username, password: Secret(config.password) })
    }

    /// Writes the header that [`Credentials::from_header`] reads.
    #[must_use]
    pub fn to_header(&self) -> String {
        let json = match self {
            Credentials::Anonymous => serde_json::json!({}),
            Credentials::Basic { username, password } => {
                serde_json::json!({ "username": username, "password": password.expose() })
            }
            Credentials::Identity(token) => serde_json::json!({ "identitytoken": token.expose() }),
            Credentials::Bearer(token) => serde_json::json!({ "registrytoken": token.expose() }),
        };
        URL_SAFE.encode(json.to_string())
    }

    /// The `Authorization` header of a user with a password.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        let Credentials::Basic { username, password } = self else { return None };
        let both = STANDARD.encode(format!("{username}:{}", password.expose()));
        secret_header(&format!("Basic {both}"))
    }
}

/// A header that is not written into logs. `None` where it cannot be a header.
pub(super) fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: String },
}

/// The challenges of an answer that are understood.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    texts.filter(|text| text.len() <= MAX_CHALLENGE_BYTES).flat_map(parse_challenges).collect()
}

/// `scheme key=value, key="value", scheme ...`
fn parse_challenges(text: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        if end == 0 {
            break;
        }
        let word = rest[..end].to_ascii_lowercase();
        let behind = rest[end..].trim_start_matches([' ', '\t']);
        let Some(value) = behind.strip_prefix('=') else {
            // A word without a value begins the next challenge.
            found.push((word, Vec::new()));
            rest = behind;
            continue;
        };
        let (value, behind) = value_of(value.trim_start_matches([' ', '\t']));
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((word, value));
        }
        rest = behind;
    }
    found.into_iter().filter_map(|(scheme, parameters)| challenge(&scheme, parameters)).collect()
}

fn challenge(scheme: &str, parameters: Vec<(String, String)>) -> Option<Challenge> {
    let get = |key: &str| {
        parameters.iter().find(|(found, _)| found == key).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer { realm: get("realm"), service: get("service"), scope: get("scope") }),
        _ => None,
    }
}

/// A token or a quoted string, and what is behind it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// A token server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) life: Duration,
}

/// Reads a token server's answer.
pub(super) fn token(json: &[u8]) -> Result<Token, String> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
        #[serde(default)]
        expires_in: Option<u64>,
    }
    let body: Body = serde_json::from_slice(json).map_err(|error| format!("its token is not valid JSON: {error}"))?;
    let text = body.token.filter(|token| !token.is_empty()).or(body.access_token).unwrap_or_default();
    if text.is_empty() {
        return Err("it answered without a token".to_owned());
    }
    let header = secret_header(&format!("Bearer {text}")).ok_or("its token cannot be a header")?;
    let life = body.expires_in.filter(|seconds| *seconds > 0).map_or(DEFAULT_TOKEN_LIFE, Duration::from_secs);
    Ok(Token { header, life: life.min(MAX_TOKEN_LIFE) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: &str, scope: &str) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.into(), scope: scope.into() }
    }

    #[test]
    fn challenges_as_registries_write_them() {
        let text = r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#;
        assert_eq!(
            parse_challenges(text),
            [bearer("https://auth.example/token", "r.example", "repository:a/b:pull,push")]
        );
        assert_eq!(parse_challenges(r#"Basic realm="a, b""#), [Challenge::Basic]);
        assert_eq!(
            parse_challenges(r#"Negotiate, Basic realm="x\"y", bearer realm=https://t/ , service = s"#),
            [Challenge::Basic, bearer("https://t/", "s", "")]
        );
        assert_eq!(parse_challenges(r#"Bearer realm="open"#), [bearer("open", "", "")]);
        assert_eq!(parse_challenges("=,=,\"\""), []);
    }

    #[test]
    fn credentials_come_and_go_as_headers() {
        let basic = Credentials::Basic { username: "ann".into(), password: Secret::new("p:ä") };
        for credentials in [
            Credentials::Anonymous,
            basic.clone(),
            Credentials::Identity(Secret::new("t")),
            Credentials::Bearer(Secret::new("b")),
        ] {
            assert_eq!(Credentials::from_header(&credentials.to_header()), Ok(credentials));
        }
        assert_eq!(Credentials::from_header(""), Ok(Credentials::Anonymous));
        assert_eq!(Credentials::from_header("e30="), Ok(Credentials::Anonymous));
        let old = STANDARD.encode(format!(r#"{{"auth":"{}"}}"#, STANDARD.encode("ann:p:ä")));
        assert_eq!(Credentials::from_header(&old), Ok(basic.clone()));
        for (json, expected) in [
            (r#"{"Username":"ann","Password":"p:ä","Auth":null,"Email":null,"ServerAddress":"r"}"#, basic.clone()),
            (r#"{"username":null,"password":null,"IdentityToken":"t"}"#, Credentials::Identity(Secret::new("t"))),
            (r#"{"RegistryToken":"b","auth":null}"#, Credentials::Bearer(Secret::new("b"))),
            (r#"{"Username":null}"#, Credentials::Anonymous),
        ] {
            assert_eq!(Credentials::from_json(json.as_bytes()), Ok(expected), "{json}");
        }
        for bad in ["%", "W10=", "eyJ1c2VybmFtZSI6MX0="] {
            assert!(Credentials::from_header(bad).is_err(), "{bad}");
        }
        assert!(!format!("{basic:?}").contains("p:"), "{basic:?}");
    }

    #[test]
    fn tokens() {
        let read = token(br#"{"access_token":"a","expires_in":300}"#).unwrap();
        assert_eq!((read.header.to_str().unwrap(), read.life.as_secs()), ("Bearer a", 300));
        assert_eq!(token(br#"{"token":"t"}"#).unwrap().life.as_secs(), 60);
        assert_eq!(token(br#"{"token":"t","expires_in":99999999}"#).unwrap().life.as_secs(), 3600);
        for bad in [&b"{}"[..], b"[]", br#"{"token":"a\nb"}"#, b"\xff"] {
            assert!(token(bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_challenge_is_too_odd(text in "[ -~\\t]{0,200}") {
            prop_assert!(parse_challenges(&text).len() <= text.len());
        }

        #[test]
        fn no_credentials_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[ -~]{0,100}") {
            let _ = (Credentials::from_json(&bytes), Credentials::from_header(&text), token(&bytes));
        }
    }
}
