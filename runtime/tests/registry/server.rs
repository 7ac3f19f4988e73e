//! A registry inside of the test: it serves what it was given and takes what is pushed, unless a rule
//! of the test says what to do instead. It speaks HTTP by hand, so that it can also do so badly.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use runtime::image::registry::{Credentials, Pulled, Registries, RegistryError, RegistrySettings, Timeouts};
use runtime::image::{Digest, Limits, Reference};
use serde_json::{Value, json};

use crate::archives::{Pack, TestImage, TestStore, pack};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What comes behind the head of an answer.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Whole(Vec<u8>),
    /// So many bytes, then the connection is cut.
    Cut(Vec<u8>, usize),
    /// So many bytes, then nothing until the server ends.
    Hang(Vec<u8>, usize),
    /// So many bytes, then one now and then.
    Trickle(Vec<u8>, usize),
    /// Not even a head.
    Silence,
}

#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status, headers: Vec::new(), body: Body::Whole(body.into()) }
    }

    pub(crate) fn error(status: u16, code: &str) -> Answer {
        Answer::new(status, json!({"errors": [{"code": code, "message": code.to_lowercase()}]}).to_string())
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn body(self, change: impl FnOnce(Vec<u8>) -> Body) -> Answer {
        let Body::Whole(bytes) = self.body else { panic!("it has been changed before") };
        Answer { body: change(bytes), ..self }
    }
}

/// Content by path below `/v2/`: media type and bytes.
pub(crate) type Content = BTreeMap<String, (String, Vec<u8>)>;
/// What the server does instead of serving; `None` where it serves. The number counts requests for the
/// same method and path, from 1.
pub(crate) type Rule = Box<dyn Fn(&Request, usize) -> Option<Answer> + Send + Sync>;

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    content: Mutex<Content>,
    rule: Mutex<Rule>,
    log: Mutex<Vec<Request>>,
    sent: Mutex<u64>,
    ended: AtomicBool,
    /// Told of each request.
    changed: Condvar,
    tls: Option<Arc<rustls::ServerConfig>>,
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

impl Server {
    pub(crate) fn start() -> Server {
        Server::with_tls(None)
    }

    pub(crate) fn with_tls(tls: Option<Arc<rustls::ServerConfig>>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            content: Mutex::default(),
            rule: Mutex::new(Box::new(|_, _| None)),
            log: Mutex::default(),
            sent: Mutex::default(),
            ended: AtomicBool::new(false),
            changed: Condvar::new(),
            tls,
        });
        let serving = Arc::clone(&inner);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::Relaxed) {
                    break;
                }
                let (inner, stream) = (Arc::clone(&serving), stream.unwrap());
                // A client that goes away is no failure of the test.
                std::thread::spawn(move || drop(inner.serve(stream)));
            }
        });
        Server { addr, inner }
    }

    pub(crate) fn host(&self) -> String {
        self.addr.to_string()
    }

    /// The reference of an image of this server.
    pub(crate) fn reference(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.addr)).unwrap()
    }

    pub(crate) fn rule(&self, rule: impl Fn(&Request, usize) -> Option<Answer> + Send + Sync + 'static) {
        *self.inner.rule.lock().unwrap() = Box::new(rule);
    }

    pub(crate) fn put(&self, path: &str, media_type: &str, bytes: impl Into<Vec<u8>>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        self.inner.content.lock().unwrap().insert(path.to_owned(), (media_type.to_owned(), bytes));
        digest
    }

    pub(crate) fn content(&self) -> Content {
        self.inner.content.lock().unwrap().clone()
    }

    /// Serves an image; answers its manifest's descriptor.
    pub(crate) fn serve_image(&self, repository: &str, tag: &str, image: &TestImage, layer_pack: Pack) -> Value {
        let mut layers = Vec::new();
        for layer in &image.layers {
            let blob = pack(layer, layer_pack);
            let digest = Digest::of(&blob);
            layers.push(descriptor(layer_type(layer_pack), &blob));
            self.put(&format!("{repository}/blobs/{digest}"), "application/octet-stream", blob);
        }
        let config = image.config();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers,
        });
        self.put(&format!("{repository}/blobs/{}", Digest::of(&config)), "application/octet-stream", config);
        self.serve_manifest(repository, tag, &manifest)
    }

    pub(crate) fn serve_manifest(&self, repository: &str, tag: &str, manifest: &Value) -> Value {
        let media_type = manifest["mediaType"].as_str().unwrap_or(MANIFEST).to_owned();
        let bytes = manifest.to_string().into_bytes();
        let digest = self.put(&format!("{repository}/manifests/{tag}"), &media_type, bytes.clone());
        self.put(&format!("{repository}/manifests/{digest}"), &media_type, bytes.clone());
        descriptor(&media_type, &bytes)
    }

    /// Requests so far, as `METHOD path`.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.inner.log.lock().unwrap().iter().map(|request| format!("{} {}", request.method, request.path)).collect()
    }

    pub(crate) fn log(&self) -> Vec<Request> {
        self.inner.log.lock().unwrap().clone()
    }

    /// How often blobs of layers were asked for; configurations are not counted.
    pub(crate) fn fetches(&self, blob: &[u8]) -> usize {
        let path = Digest::of(blob).to_string();
        self.log().iter().filter(|request| request.method == "GET" && request.path.ends_with(&path)).count()
    }

    /// Bytes of bodies that were sent, and forgets them.
    pub(crate) fn take_sent(&self) -> u64 {
        std::mem::take(&mut *self.inner.sent.lock().unwrap())
    }

    /// Waits until a request satisfies `wanted`.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&Request) -> bool) {
        let log = self.inner.log.lock().unwrap();
        let (log, waited) = self
            .inner
            .changed
            .wait_timeout_while(log, Duration::from_secs(30), |log| !log.iter().any(&wanted))
            .unwrap();
        assert!(!waited.timed_out(), "no such request came: {log:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.inner.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.addr);
    }
}

impl Inner {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &self.tls {
            Some(config) => {
                let connection = rustls::ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                Box::new(rustls::StreamOwned::new(connection, stream))
            }
            None => Box::new(stream),
        };
        let mut stream = BufReader::new(stream);
        while let Some(request) = read_request(&mut stream)? {
            let nth = {
                let mut log = self.log.lock().unwrap();
                log.push(request.clone());
                self.changed.notify_all();
                log.iter().filter(|other| other.method == request.method && other.path == request.path).count()
            };
            let ruled = self.rule.lock().unwrap()(&request, nth);
            let answer = ruled.unwrap_or_else(|| self.answer(&request));
            self.write(stream.get_mut(), &request, answer)?;
        }
        Ok(())
    }

    fn answer(&self, request: &Request) -> Answer {
        let Some(path) = request.path.strip_prefix("/v2/") else { return Answer::error(404, "NOT_FOUND") };
        match request.method.as_str() {
            "GET" | "HEAD" if path.is_empty() => Answer::new(200, "{}"),
            "GET" | "HEAD" => {
                let found = self.content.lock().unwrap().get(path).cloned();
                let Some((media_type, bytes)) = found else { return Answer::error(404, "UNKNOWN") };
                serve(request, &media_type, bytes)
            }
            "POST" => {
                let query = request.query.clone();
                let parameter =
                    |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)).map(str::to_owned);
                if let (Some(digest), Some(from)) = (parameter("mount="), parameter("from=")) {
                    let mut content = self.content.lock().unwrap();
                    if let Some(blob) = content.get(&format!("{from}/blobs/{digest}")).cloned() {
                        let repository = path.strip_suffix("/blobs/uploads/").unwrap();
                        content.insert(format!("{repository}/blobs/{digest}"), blob);
                        return Answer::new(201, "");
                    }
                }
                Answer::new(202, "").header("location", format!("{}session?state=1", request.path))
            }
            "PUT" => {
                let media_type = request.header("content-type").to_owned();
                let digest = Digest::of(&request.body);
                let mut paths = vec![path.to_owned()];
                if let Some(repository) = path.strip_suffix("/blobs/uploads/session") {
                    let stated = request.query.split('&').find_map(|pair| pair.strip_prefix("digest="));
                    if stated != Some(&digest.to_string().replace(':', "%3A")) {
                        return Answer::error(400, "DIGEST_INVALID");
                    }
                    paths = vec![format!("{repository}/blobs/{digest}")];
                } else if let Some((repository, _)) = path.split_once("/manifests/") {
                    paths.push(format!("{repository}/manifests/{digest}"));
                }
                let mut content = self.content.lock().unwrap();
                for path in paths {
                    content.insert(path, (media_type.clone(), request.body.clone()));
                }
                Answer::new(201, "").header("docker-content-digest", digest.to_string())
            }
            "DELETE" => Answer::new(204, ""),
            _ => Answer::error(405, "UNSUPPORTED"),
        }
    }

    fn write(&self, stream: &mut dyn Stream, request: &Request, answer: Answer) -> io::Result<()> {
        let trickles = matches!(answer.body, Body::Trickle(..));
        let (bytes, stop, hang) = match answer.body {
            Body::Whole(bytes) => (bytes, None, false),
            Body::Cut(bytes, at) => (bytes, Some(at), false),
            Body::Hang(bytes, at) => (bytes, Some(at), true),
            Body::Trickle(bytes, at) => (bytes, Some(at), false),
            Body::Silence => return self.hang(),
        };
        let mut head = format!("HTTP/1.1 {} x\r\n", answer.status);
        let stated = answer.headers.iter().any(|(name, _)| name == "content-length" || name == "transfer-encoding");
        if !stated && answer.status != 204 {
            head.push_str(&format!("content-length: {}\r\n", bytes.len()));
        }
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method != "HEAD" {
            let body = &bytes[..stop.unwrap_or(bytes.len())];
            stream.write_all(body)?;
            *self.sent.lock().unwrap() += body.len() as u64;
        }
        stream.flush()?;
        if let Some(at) = stop.filter(|_| trickles) {
            for byte in &bytes[at..] {
                if self.ended.load(Ordering::Relaxed) {
                    break;
                }
                stream.write_all(&[*byte])?;
                stream.flush()?;
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
        match (stop, hang) {
            (None, _) => Ok(()),
            (Some(_), false) => Err(io::ErrorKind::ConnectionAborted.into()),
            (Some(_), true) => self.hang(),
        }
    }

    /// Keeps the connection and says nothing until the server ends.
    fn hang(&self) -> io::Result<()> {
        while !self.ended.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }
}

/// Serves bytes, or the range that was asked for.
pub(crate) fn serve(request: &Request, media_type: &str, bytes: Vec<u8>) -> Answer {
    let digest = Digest::of(&bytes);
    let total = bytes.len();
    let range = request.header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
    let answer = match range.map(|start| start.parse::<usize>().unwrap()) {
        Some(start) => Answer::new(206, bytes[start..].to_vec())
            .header("content-range", format!("bytes {start}-{}/{total}", total - 1)),
        None => Answer::new(200, bytes),
    };
    answer.header("content-type", media_type).header("docker-content-digest", digest.to_string())
}

fn read_request(stream: &mut BufReader<Box<dyn Stream>>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: BTreeMap::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            request.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let length: usize = request.header("content-length").parse().unwrap_or(0);
    request.body = vec![0; length];
    stream.read_exact(&mut request.body)?;
    Ok(Some(request))
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
}

pub(crate) fn layer_type(layer_pack: Pack) -> &'static str {
    match layer_pack {
        Pack::Plain => "application/vnd.oci.image.layer.v1.tar",
        Pack::Gzip => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        Pack::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    }
}

/// A host with an empty store, impatient, to which the given registries are known as insecure.
pub(crate) struct TestHost {
    pub(crate) store: TestStore,
    pub(crate) registries: Registries,
    runtime: tokio::runtime::Runtime,
}

pub(crate) fn impatient() -> Timeouts {
    Timeouts {
        connect: Duration::from_secs(5),
        headers: Duration::from_millis(500),
        idle: Duration::from_millis(500),
        backoff: Duration::from_millis(1),
    }
}

pub(crate) fn settings(insecure: &[&Server]) -> RegistrySettings {
    RegistrySettings {
        insecure: insecure.iter().map(|server| server.host()).collect(),
        timeouts: impatient(),
        ..RegistrySettings::default()
    }
}

impl TestHost {
    pub(crate) fn new(server: &Server) -> Option<TestHost> {
        TestHost::with(settings(&[server]), Limits::default())
    }

    pub(crate) fn with(settings: RegistrySettings, limits: Limits) -> Option<TestHost> {
        let store = TestStore::with_limits(limits)?;
        let registries = Registries::new(store.store.clone(), settings).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Some(TestHost { store, registries, runtime })
    }

    pub(crate) fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.runtime.block_on(self.runtime.spawn(work)).unwrap()
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(work)
    }

    pub(crate) fn pull(&self, reference: &Reference) -> Result<Pulled, RegistryError> {
        self.pull_as(reference, Credentials::Anonymous)
    }

    pub(crate) fn pull_as(&self, reference: &Reference, credentials: Credentials) -> Result<Pulled, RegistryError> {
        let (registries, reference) = (self.registries.clone(), reference.clone());
        self.run(async move { registries.pull(&reference, None, &credentials, None).await })
    }

    pub(crate) fn entries(&self, sub: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.store.root().join(sub)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Waits until nothing is left of pulls that failed, and sees that no image is there.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let left = (self.entries("layers"), self.entries("blobs/sha256"), self.entries("tmp"));
            if left == (vec![], vec![], vec![]) {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "left behind: {left:?}");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        assert!(self.store.store.list().is_empty());
    }
}
