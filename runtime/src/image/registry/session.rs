//! Requests to one registry in the name of one user: challenges are answered, redirects followed
//! within bounds, what fails for a moment is tried again.
//!
//! Credentials go to the registry and to the token server that it names, tokens only to the registry.
//! Whoever a redirect leads to gets neither. A token that is refused is replaced; credentials that are
//! refused are, where their source has others by then.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;

use super::auth::{Challenge, CredentialSource, Credentials, challenges, secret_header, token};
use super::backoff::Backoff;
use super::error::RegistryError;
use super::http::{Answer, Http, Outgoing, Payload};
use super::url::{Origin, Scheme, Url, escape};

/// Redirects of one request that are followed.
const MAX_REDIRECTS: usize = 5;
/// Bytes of an error's or a redirect's body that are read.
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// Bytes of a token server's answer.
const MAX_TOKEN_BYTES: u64 = 1 << 20;
/// Characters of a registry's message that are shown.
const MAX_MESSAGE: usize = 300;
/// A token that runs out within this time is not used any more.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);
/// How often other credentials are tried in one session.
const MAX_CHANGES: u32 = 8;
/// What a mirror gets.
static NOBODY: Credentials = Credentials::Anonymous;

/// One registry, one user, for the time of one pull or push.
pub(super) struct Session<'a> {
    http: &'a Http,
    host: String,
    /// Given for a mirror, found out for a registry.
    fixed: Option<Origin>,
    source: &'a dyn CredentialSource,
    identity: Mutex<Identity>,
}

/// Who one is at the moment.
struct Identity {
    credentials: Credentials,
    /// How often others took their place.
    changes: u32,
    /// The registry asked for a user's name and password.
    basic: bool,
    /// By scope.
    tokens: BTreeMap<String, (HeaderValue, Instant)>,
}

/// How a request says who one is.
struct Shown {
    header: Option<HeaderValue>,
    /// The user's own name and password, and no token.
    basic: bool,
    /// Which credentials it comes from: the number of changes.
    changes: u32,
}

impl Identity {
    fn new(credentials: Credentials, changes: u32) -> Identity {
        Identity { credentials, changes, basic: false, tokens: BTreeMap::new() }
    }
}

impl fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("host", &self.host).finish_non_exhaustive()
    }
}

/// What is asked, apart from whom.
#[derive(Debug, Clone)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    /// What is named when it is refused.
    pub(super) what: &'a str,
    /// What a token must be good for.
    pub(super) scope: &'a str,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) payload: Payload,
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method, what: &'a str, scope: &'a str) -> Ask<'a> {
        Ask { method, what, scope, headers: Vec::new(), payload: Payload::Empty }
    }

    /// `value` is made here: text that is a header.
    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Ask<'a> {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    pub(super) fn payload(mut self, payload: Payload) -> Ask<'a> {
        self.payload = payload;
        self
    }
}

/// What a token must be good for to read a repository.
pub(super) fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

impl<'a> Session<'a> {
    pub(super) fn new(http: &'a Http, host: &str, source: &'a dyn CredentialSource) -> Session<'a> {
        let identity = Mutex::new(Identity::new(source.first(), 0));
        Session { http, host: host.to_owned(), fixed: None, source, identity }
    }

    /// A registry whose address is known; nobody's credentials are for it.
    pub(super) fn at(http: &'a Http, origin: Origin) -> Session<'a> {
        let host = origin.authority.clone();
        Session { fixed: Some(origin), ..Session::new(http, &host, &NOBODY) }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn backoff(&self) -> Backoff {
        Backoff::new(self.http.timeouts().backoff)
    }

    /// Asks once. `path` is below the registry; begins with a slash.
    pub(super) async fn once(&self, path: &str, ask: &Ask<'_>) -> Result<Answer, RegistryError> {
        let origin = self.own().await?;
        self.at_url(Url { origin, path: path.to_owned() }, ask).await
    }

    /// Asks until there is an answer or another try makes no sense. Only for what may be asked twice.
    pub(super) async fn ask(&self, path: &str, ask: &Ask<'_>) -> Result<Answer, RegistryError> {
        let mut backoff = self.backoff();
        loop {
            match self.once(path, ask).await {
                Ok(answer) => return Ok(answer),
                Err(error) => backoff.again(error).await?,
            }
        }
    }

    /// The registry's own address.
    async fn own(&self) -> Result<Origin, RegistryError> {
        match &self.fixed {
            Some(origin) => Ok(origin.clone()),
            None => self.http.origin(&self.host).await,
        }
    }

    /// Asks at an address that the registry gave. Answers that are no success are errors.
    pub(super) async fn at_url(&self, url: Url, ask: &Ask<'_>) -> Result<Answer, RegistryError> {
        let home = url.origin.clone();
        let is_own = self.own().await?.is_same(&home);
        // A registry that speaks TLS must not have what is meant for it sent in the clear.
        if home.scheme == Scheme::Http && !is_own && !self.http.is_insecure(&home.authority) {
            let reason = format!("{url} is plain HTTP");
            return Err(RegistryError::Redirect { registry: self.host.clone(), reason });
        }
        let request =
            Outgoing { method: ask.method.clone(), url, headers: ask.headers.clone(), payload: ask.payload.clone() };
        // The credentials that a challenge was answered with, and a second one of which means that they are refused.
        let mut tried = None;
        loop {
            let shown = self.show(ask.scope);
            let changes = shown.changes;
            let answer = self.follow(request.clone(), &home, shown.header.filter(|_| is_own)).await?;
            // Whoever the registry has sent it on to may ask for credentials, and gets none.
            if answer.status != StatusCode::UNAUTHORIZED || !is_own || answer.origin != home {
                return refuse(answer, ask.what).await;
            }
            let again = tried.replace(changes) == Some(changes) || shown.basic;
            let refused = match again {
                true => refuse(answer, ask.what).await.map(drop),
                false => self.satisfy(answer, &home, ask.scope, changes).await,
            };
            match refused {
                Err(RegistryError::Unauthorized { .. }) if self.change(changes) => {}
                outcome => outcome?,
            }
        }
    }

    fn identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes other credentials after those with that number were refused, if there are any.
    fn change(&self, refused: u32) -> bool {
        let mut identity = self.identity();
        if identity.changes != refused {
            // Another request of the same pull was refused too, and has changed them.
            return true;
        }
        if refused >= MAX_CHANGES {
            return false;
        }
        let Some(others) = self.source.after(&identity.credentials) else { return false };
        tracing::info!(registry = self.host, "a registry refuses credentials; others are tried");
        *identity = Identity::new(others, refused + 1);
        true
    }

    /// Whether the registry takes the credentials.
    pub(super) async fn login(&self) -> Result<(), RegistryError> {
        self.once("/v2/", &Ask::new(Method::GET, "the registry", "")).await.map(drop)
    }

    /// Sends a request, and again wherever it is sent on to, but the authorization only to `home`.
    async fn follow(
        &self,
        mut request: Outgoing,
        home: &Origin,
        authorization: Option<HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let plain = request.headers.clone();
        for _ in 0..=MAX_REDIRECTS {
            request.headers.clone_from(&plain);
            if request.url.origin == *home {
                request.headers.extend(authorization.iter().map(|value| (AUTHORIZATION, value.clone())));
            }
            let mut answer = self.http.send(&request).await?;
            let moved = matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308);
            if !moved || !matches!(request.method, Method::GET | Method::HEAD) {
                return Ok(answer);
            }
            let refused = |reason: String| RegistryError::Redirect { registry: self.host.clone(), reason };
            let next = answer.header(LOCATION).and_then(|location| request.url.join(location));
            let next = next.ok_or_else(|| refused("it leads nowhere".to_owned()))?;
            if next.origin.scheme == Scheme::Http
                && next.origin != request.url.origin
                && !self.http.is_insecure(&next.origin.authority)
            {
                return Err(refused(format!("{next} is plain HTTP")));
            }
            // What is left unread would cost the connection.
            answer.bytes(MAX_ERROR_BYTES).await?;
            request.url = next;
        }
        Err(RegistryError::Redirect {
            registry: self.host.clone(),
            reason: format!("there are more than {MAX_REDIRECTS} of them"),
        })
    }

    fn show(&self, scope: &str) -> Shown {
        let identity = self.identity();
        let shown = |header, basic| Shown { header, basic, changes: identity.changes };
        if let Credentials::Bearer(token) = &identity.credentials {
            return shown(secret_header(&format!("Bearer {}", token.expose())), false);
        }
        match identity.tokens.get(scope) {
            Some((token, until)) if Instant::now() < *until => shown(Some(token.clone()), false),
            _ if identity.basic => shown(identity.credentials.basic(), true),
            _ => shown(None, false),
        }
    }

    /// Gets what the registry asks for, with the credentials that have that number.
    async fn satisfy(&self, mut answer: Answer, home: &Origin, scope: &str, changes: u32) -> Result<(), RegistryError> {
        let asked = challenges(&answer.headers);
        let message = message(&mut answer).await;
        let unauthorized = |message| RegistryError::Unauthorized { registry: self.host.clone(), message };
        let credentials = self.identity().credentials.clone();
        if matches!(credentials, Credentials::Bearer(_)) {
            return Err(unauthorized(message));
        }
        let bearer = asked.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scope } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        if let Some((realm, service, suggested)) = bearer {
            let scope_asked = if scope.is_empty() { suggested } else { scope };
            let (token, life) = self.fetch_token(&credentials, realm, service, scope_asked, home).await?;
            let until = Instant::now() + life.saturating_sub(TOKEN_MARGIN).max(life / 2);
            let mut identity = self.identity();
            if identity.changes == changes {
                identity.tokens.insert(scope.to_owned(), (token, until));
            }
            return Ok(());
        }
        if !asked.contains(&Challenge::Basic) || credentials.basic().is_none() {
            return Err(unauthorized(message));
        }
        let mut identity = self.identity();
        if identity.changes == changes {
            identity.basic = true;
        }
        Ok(())
    }

    async fn fetch_token(
        &self,
        credentials: &Credentials,
        realm: &str,
        service: &str,
        scope: &str,
        home: &Origin,
    ) -> Result<(HeaderValue, Duration), RegistryError> {
        let bad = |reason: &str| RegistryError::protocol(&self.host, format!("its token server {reason}"));
        let mut url = Url::parse(realm).ok_or_else(|| bad("has no valid address"))?;
        if url.origin.scheme == Scheme::Http && url.origin != *home && !self.http.is_insecure(&url.origin.authority) {
            return Err(bad("speaks plain HTTP and is not named as insecure"));
        }
        let mut headers = vec![(ACCEPT, HeaderValue::from_static("application/json"))];
        let (method, payload) = match credentials {
            Credentials::Identity(token) => {
                let mut form = String::from("grant_type=refresh_token&client_id=shoal");
                for (key, value) in [("refresh_token", token.expose()), ("service", service), ("scope", scope)] {
                    form.push('&');
                    form.push_str(key);
                    form.push('=');
                    escape(&mut form, value);
                }
                headers.push((CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")));
                (Method::POST, Payload::Bytes(Bytes::from(form)))
            }
            credentials => {
                if !service.is_empty() {
                    url = url.with_query("service", service);
                }
                // A token for several repositories has several scopes.
                for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
                    url = url.with_query("scope", scope);
                }
                if let Credentials::Basic { username, .. } = credentials {
                    url = url.with_query("account", username);
                }
                headers.extend(credentials.basic().map(|value| (AUTHORIZATION, value)));
                (Method::GET, Payload::Empty)
            }
        };
        let server = url.origin.authority.clone();
        let answer = self.http.send(&Outgoing { method, url, headers, payload }).await?;
        let mut answer = refuse(answer, "the token").await.map_err(|error| match error {
            RegistryError::NotFound { message, .. } | RegistryError::Denied { message, .. } => {
                RegistryError::Unauthorized { registry: self.host.clone(), message }
            }
            other => other,
        })?;
        let json = answer.bytes(MAX_TOKEN_BYTES).await?.ok_or_else(|| bad("sends a token without end"))?;
        let token = token(&json).map_err(|reason| RegistryError::protocol(server, reason))?;
        Ok((token.header, token.life))
    }
}

/// Turns an answer that is no success into an error.
async fn refuse(mut answer: Answer, what: &str) -> Result<Answer, RegistryError> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    let retry_after = answer.header(RETRY_AFTER).and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    let message = message(&mut answer).await;
    let (registry, what) = (answer.registry, what.to_owned());
    Err(match answer.status {
        StatusCode::NOT_FOUND => RegistryError::NotFound { what, message },
        StatusCode::UNAUTHORIZED => RegistryError::Unauthorized { registry, message },
        StatusCode::FORBIDDEN => RegistryError::Denied { what, message },
        status => RegistryError::Status { registry, status: status.as_u16(), message, retry_after },
    })
}

/// What a registry says of its refusal, as far as it can be shown.
async fn message(answer: &mut Answer) -> String {
    match answer.bytes(MAX_ERROR_BYTES).await {
        Ok(Some(body)) => message_in(&body),
        // Whatever it would have said, the status says enough.
        Ok(None) | Err(_) => String::new(),
    }
}

fn message_in(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<One>,
        #[serde(default)]
        details: String,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(said) = serde_json::from_slice::<Errors>(body) else { return String::new() };
    let first = said.errors.first().map(|one| if one.message.is_empty() { &one.code } else { &one.message });
    let text = first.unwrap_or(&said.details);
    text.chars().filter(|character| !character.is_control()).take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_short_and_printable() {
        let body =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\u001b[31m unknown","detail":{"Tag":"x"}}]}"#;
        assert_eq!(message_in(body), "manifest[31m unknown");
        assert_eq!(message_in(br#"{"errors":[{"code":"DENIED"}]}"#), "DENIED");
        assert_eq!(message_in(br#"{"details":"incorrect username or password"}"#), "incorrect username or password");
        assert_eq!(message_in(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(5000));
        assert_eq!(message_in(long.as_bytes()).len(), MAX_MESSAGE);
    }
}
