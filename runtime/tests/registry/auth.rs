//! Who may pull, and who gets to see the credentials.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use runtime::image::registry::{CredentialSource, Credentials, RegistryError, RegistryErrorKind, Secret};
use runtime::image::{Digest, Limits};
use serde_json::json;

use crate::archives::{Pack, TestImage, pack};
use crate::pulling::layer;
use crate::server::{Answer, Request, Server, TestHost, serve, settings};

fn ann() -> Credentials {
    Credentials::Basic { username: "ann".into(), password: Secret::new("secret") }
}

fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(user))
}

fn image(server: &Server) -> TestImage {
    let image = TestImage::new("x", vec![layer("a"), layer("b")]);
    server.serve_image("web", "1", &image, Pack::Gzip);
    image
}

fn login(host: &TestHost, server: &Server, credentials: Credentials) -> Result<(), RegistryError> {
    let (registries, name) = (host.registries.clone(), server.host());
    host.run(async move { registries.login(&name, &credentials).await })
}

#[test]
fn a_user_with_a_password() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    image(&server);
    server.rule(|request, _| {
        (request.header("authorization") != basic("ann:secret"))
            .then(|| Answer::error(401, "UNAUTHORIZED").header("www-authenticate", r#"Basic realm="here""#))
    });
    for bad in [
        Credentials::Anonymous,
        Credentials::Basic { username: "ann".into(), password: Secret::new("wrong") },
        Credentials::Identity(Secret::new("token")),
        Credentials::Bearer(Secret::new("token")),
    ] {
        assert_eq!(login(&host, &server, bad.clone()).unwrap_err().kind(), RegistryErrorKind::Unauthorized);
        let before = server.requests().len();
        let error = host.pull_as(&server.reference("web:1"), bad).unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::Unauthorized);
        assert!(server.requests().len() - before <= 2, "wrong credentials are not tried again and again");
    }
    login(&host, &server, ann()).unwrap();
    host.pull_as(&server.reference("web:1"), ann()).unwrap();
    assert!(server.log()[0].header("authorization").is_empty(), "credentials are shown only to who asks for them");
}

/// A token server beside the registry; tokens hold their scope and a number.
fn with_tokens(server: &Server, tokens: &Server, user: &'static str, life: u64) -> Arc<AtomicUsize> {
    let given = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&given);
    tokens.rule(move |request, _| {
        let who = request.header("authorization");
        if !user.is_empty() && who != basic(user) {
            return Some(Answer::new(401, json!({"details": "incorrect username or password"}).to_string()));
        }
        assert!(request.query.contains("service=the%20service"), "{}", request.query);
        let number = counter.fetch_add(1, Ordering::Relaxed) + 1;
        let scope = request.query.split('&').find_map(|pair| pair.strip_prefix("scope=")).unwrap_or_default();
        Some(Answer::new(200, json!({"token": format!("{scope}#{number}"), "expires_in": life}).to_string()))
    });
    let realm = format!("http://{}/token", tokens.host());
    server.rule(move |request, _| {
        let token = request.header("authorization").strip_prefix("Bearer ").unwrap_or_default();
        (!token.starts_with("repository%3Aweb%3Apull")).then(|| {
            let challenge = format!(r#"Bearer realm="{realm}",service="the service",scope="repository:web:pull""#);
            Answer::error(401, "UNAUTHORIZED").header("www-authenticate", challenge)
        })
    });
    given
}

#[test]
fn tokens_are_fetched_and_used_again() {
    for (user, credentials) in [("", Credentials::Anonymous), ("ann:secret", ann())] {
        let (server, tokens) = (Server::start(), Server::start());
        let Some(host) = TestHost::with(settings(&[&server, &tokens]), Limits::default()) else { return };
        image(&server);
        let given = with_tokens(&server, &tokens, user, 300);
        host.pull_as(&server.reference("web:1"), credentials).unwrap();
        assert_eq!(given.load(Ordering::Relaxed), 1);
        assert!(server.log().iter().all(|request| !request.header("authorization").starts_with("Basic")));
    }
}

#[test]
fn a_token_that_is_refused_is_replaced() {
    let (server, tokens) = (Server::start(), Server::start());
    let Some(host) = TestHost::with(settings(&[&server, &tokens]), Limits::default()) else { return };
    let blob = pack(&image(&server).layers[0], Pack::Gzip);
    let given = with_tokens(&server, &tokens, "", 300);
    // For the layers, only the second token is good.
    let realm = format!("http://{}/token", tokens.host());
    let layer = Digest::of(&blob).to_string();
    server.rule(move |request: &Request, _| {
        let token = request.header("authorization");
        let good = token.starts_with("Bearer ") && (!request.path.ends_with(&layer) || !token.ends_with("#1"));
        (!good).then(|| {
            let challenge = format!(r#"Bearer realm="{realm}",service="the service""#);
            Answer::error(401, "UNAUTHORIZED").header("www-authenticate", challenge)
        })
    });
    host.pull(&server.reference("web:1")).unwrap();
    assert!(given.load(Ordering::Relaxed) >= 2);
}

#[test]
fn wrong_credentials_at_the_token_server() {
    let (server, tokens) = (Server::start(), Server::start());
    let Some(host) = TestHost::with(settings(&[&server, &tokens]), Limits::default()) else { return };
    image(&server);
    with_tokens(&server, &tokens, "ann:other", 300);
    let error = host.pull_as(&server.reference("web:1"), ann()).unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Unauthorized);
    assert!(error.to_string().contains("incorrect username or password"), "{error}");
}

/// A registry must not lead credentials over plain HTTP to whoever it likes.
#[test]
fn a_token_server_that_is_not_to_be_trusted() {
    let (server, tokens) = (Server::start(), Server::start());
    let Some(host) = TestHost::new(&server) else { return };
    image(&server);
    with_tokens(&server, &tokens, "", 300);
    let error = host.pull_as(&server.reference("web:1"), ann()).unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error:?}");
    assert!(tokens.requests().is_empty());
    for realm in ["", "realm", "file:///etc/passwd", "https://u:p@h/"] {
        let challenge = format!(r#"Bearer realm="{realm}""#);
        server.rule(move |_, _| Some(Answer::error(401, "X").header("www-authenticate", challenge.clone())));
        let error = host.pull_as(&server.reference("web:1"), ann()).unwrap_err();
        assert!(matches!(error, RegistryError::Protocol { .. }), "{realm}: {error:?}");
    }
}

#[test]
fn an_identity_token_is_exchanged() {
    let (server, tokens) = (Server::start(), Server::start());
    let Some(host) = TestHost::with(settings(&[&server, &tokens]), Limits::default()) else { return };
    image(&server);
    with_tokens(&server, &tokens, "", 300);
    tokens.rule(|request, _| {
        let form = String::from_utf8(request.body.clone()).unwrap();
        assert_eq!(request.method, "POST");
        assert!(form.contains("grant_type=refresh_token") && form.contains("refresh_token=id%2Ftoken"), "{form}");
        Some(Answer::new(200, r#"{"access_token":"repository%3Aweb%3Apull"}"#))
    });
    host.pull_as(&server.reference("web:1"), Credentials::Identity(Secret::new("id/token"))).unwrap();
}

/// Layers may lie elsewhere; credentials do not go there.
#[test]
fn redirects_carry_no_credentials() {
    let (server, elsewhere) = (Server::start(), Server::start());
    let Some(host) = TestHost::with(settings(&[&server, &elsewhere]), Limits::default()) else { return };
    image(&server);
    let content = server.content();
    elsewhere.rule(move |request, _| {
        let path = request.path.trim_start_matches("/v2/");
        content.get(path).map(|(_, bytes)| serve(request, "", bytes.clone()))
    });
    let location = elsewhere.host();
    server.rule(move |request, _| {
        if request.header("authorization") != basic("ann:secret") {
            return Some(Answer::error(401, "X").header("www-authenticate", "Basic"));
        }
        let blob = request.path.contains("/blobs/");
        blob.then(|| Answer::new(307, "").header("location", format!("http://{location}{}", request.path)))
    });
    host.pull_as(&server.reference("web:1"), ann()).unwrap();
    let seen = elsewhere.log();
    assert_eq!(seen.len(), 3, "two layers and the configuration");
    assert!(seen.iter().all(|request| request.header("authorization").is_empty()), "{seen:?}");

    // And one that asks for them there does not get them either.
    elsewhere.rule(|_, _| Some(Answer::error(401, "X").header("www-authenticate", "Basic")));
    let other = TestHost::with(settings(&[&server, &elsewhere]), Limits::default()).unwrap();
    let error = other.pull_as(&server.reference("web:1"), ann()).unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Unauthorized);
    assert!(elsewhere.log().iter().all(|request| request.header("authorization").is_empty()));

    // Nor is a token fetched for it.
    for credentials in [ann(), Credentials::Identity(Secret::new("id"))] {
        let realm = format!(r#"Bearer realm="http://{}/token",service="s""#, elsewhere.host());
        elsewhere.rule(move |_, _| Some(Answer::error(401, "X").header("www-authenticate", realm.clone())));
        let (other, name) =
            (TestHost::with(settings(&[&server, &elsewhere]), Limits::default()).unwrap(), elsewhere.host());
        server.rule(move |request, _| {
            let location = format!("http://{name}{}", request.path);
            Some(Answer::new(307, "").header("location", location))
        });
        let error = other.pull_as(&server.reference("web:1"), credentials).unwrap_err();
        assert_eq!(error.kind(), RegistryErrorKind::Unauthorized, "{error}");
        let seen = elsewhere.log();
        assert!(seen.iter().all(|request| request.header("authorization").is_empty()), "{seen:?}");
        assert!(seen.iter().all(|request| request.path != "/token"), "{seen:?}");
    }
}

/// Credentials that somebody changes.
#[derive(Clone, Debug, Default)]
struct Changing(Arc<Mutex<Credentials>>);

impl CredentialSource for Changing {
    fn first(&self) -> Credentials {
        self.0.lock().unwrap().clone()
    }

    fn after(&self, refused: &Credentials) -> Option<Credentials> {
        Some(self.first()).filter(|present| present != refused)
    }
}

fn user(password: &str) -> Credentials {
    Credentials::Basic { username: "ann".into(), password: Secret::new(password) }
}

/// The password changes once the manifest is there: the rest comes with the new one.
#[test]
fn a_pull_goes_on_with_credentials_that_have_changed() {
    for with_token_server in [false, true] {
        let (server, tokens) = (Server::start(), Server::start());
        let Some(host) = TestHost::with(settings(&[&server, &tokens]), Limits::default()) else { return };
        image(&server);
        let credentials = Changing(Arc::new(Mutex::new(user("old"))));
        // What the registry takes: the password itself, or a token that was given for it.
        let good = Arc::new(Mutex::new("old"));
        let wanted = Arc::clone(&good);
        tokens.rule(move |request, _| {
            let password = *wanted.lock().unwrap();
            Some(match request.header("authorization") == basic(&format!("ann:{password}")) {
                true => Answer::new(200, json!({ "token": password, "expires_in": 300 }).to_string()),
                false => Answer::error(401, "UNAUTHORIZED"),
            })
        });
        let (changing, realm) = (credentials.clone(), format!("http://{}/token", tokens.host()));
        server.rule(move |request, _| {
            if request.path.contains("/blobs/") {
                *good.lock().unwrap() = "new";
                *changing.0.lock().unwrap() = user("new");
            }
            let (expected, challenge) = match with_token_server {
                true => (format!("Bearer {}", good.lock().unwrap()), format!(r#"Bearer realm="{realm}",service="s""#)),
                false => (basic(&format!("ann:{}", good.lock().unwrap())), r#"Basic realm="here""#.to_owned()),
            };
            let known = request.header("authorization") == expected;
            (!known).then(|| Answer::error(401, "UNAUTHORIZED").header("www-authenticate", challenge))
        });
        let (registries, name) = (host.registries.clone(), server.reference("web:1"));
        host.run(async move { registries.pull(&name, None, &credentials, None).await }).unwrap();
        assert_eq!(host.store.store.list().len(), 1);
    }
}

#[test]
fn credentials_are_tried_in_their_order() {
    let server = Server::start();
    let Some(host) = TestHost::new(&server) else { return };
    image(&server);
    server.rule(|request, _| {
        (request.header("authorization") != basic("ann:secret"))
            .then(|| Answer::error(401, "UNAUTHORIZED").header("www-authenticate", r#"Basic realm="here""#))
    });
    let pull = |credentials: Vec<Credentials>| {
        let (registries, name) = (host.registries.clone(), server.reference("web:1"));
        host.run(async move { registries.pull(&name, None, &credentials, None).await })
    };
    let before = server.requests().len();
    let error = pull(vec![user("a"), user("b"), user("b")]).unwrap_err();
    assert_eq!(error.kind(), RegistryErrorKind::Unauthorized);
    assert!(server.requests().len() - before <= 4, "each is tried once");
    assert_eq!(pull(Vec::new()).unwrap_err().kind(), RegistryErrorKind::Unauthorized);
    host.assert_empty();
    pull(vec![user("a"), ann()]).unwrap();
}
