//! Builds image archives of each format.

use std::io::Write;

use runtime::image::{Digest, ImageStore, Limits};
use serde_json::{Value, json};

/// How a layer or an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pack {
    Plain,
    Gzip,
    Zstd,
}

pub(crate) const PACKS: [Pack; 3] = [Pack::Plain, Pack::Gzip, Pack::Zstd];

pub(crate) fn pack(bytes: &[u8], pack: Pack) -> Vec<u8> {
    match pack {
        Pack::Plain => bytes.to_vec(),
        Pack::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Pack::Zstd => ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest),
    }
}

/// A tar under construction.
pub(crate) struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header.set_mtime(1_000_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    /// Appends an entry whose name is written as it is, however bad.
    pub(crate) fn raw(mut self, name: &str, mut header: tar::Header, content: &[u8]) -> Tar {
        let field = &mut header.as_old_mut().name;
        field.fill(0);
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> Tar {
        let header = Tar::header(tar::EntryType::Regular, 0o644, content.len());
        self.raw(name, header, content)
    }

    pub(crate) fn dir(self, name: &str) -> Tar {
        self.raw(name, Tar::header(tar::EntryType::Directory, 0o755, 0), b"")
    }

    pub(crate) fn link(self, kind: tar::EntryType, name: &str, target: &str) -> Tar {
        let mut header = Tar::header(kind, 0o777, 0);
        header.set_link_name_literal(target).unwrap();
        self.raw(name, header, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Tar {
        self.link(tar::EntryType::Symlink, name, target)
    }

    pub(crate) fn hardlink(self, name: &str, target: &str) -> Tar {
        self.link(tar::EntryType::Link, name, target)
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Tar {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// An image to write into an archive.
pub(crate) struct TestImage {
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) tags: Vec<String>,
    pub(crate) process: Value,
}

impl TestImage {
    pub(crate) fn new(tag: &str, layers: Vec<Vec<u8>>) -> TestImage {
        TestImage {
            layers,
            tags: vec![tag.to_owned()],
            process: json!({
                "Entrypoint": ["/bin/app"],
                "Cmd": null,
                "Env": ["PATH=/bin"],
                "WorkingDir": "/srv",
                "Labels": {"maker": "test"},
                "ExposedPorts": {"80/tcp": {}},
                "StopSignal": "SIGINT",
            }),
        }
    }

    pub(crate) fn config(&self) -> Vec<u8> {
        let diff_ids: Vec<String> = self.layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        json!({
            "created": "2024-05-06T07:08:09.5Z",
            "architecture": "amd64",
            "os": "linux",
            "config": self.process,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": "test"}],
        })
        .to_string()
        .into_bytes()
    }

    pub(crate) fn id(&self) -> String {
        Digest::of(&self.config()).to_string()
    }
}

/// `docker save` as Docker 1.10 to 24 wrote it: the index comes last.
pub(crate) fn docker_save(images: &[TestImage], layer_pack: Pack) -> Vec<u8> {
    let mut tar = Tar::new();
    let mut manifest = Vec::new();
    let mut written = Vec::new();
    for image in images {
        let mut names = Vec::new();
        for layer in &image.layers {
            let hex = Digest::of(layer).hex();
            let dir = &hex[..32];
            let name = format!("{dir}/layer.tar");
            if !written.contains(&name) {
                tar = tar.dir(&format!("{dir}/")).file(&name, &pack(layer, layer_pack));
                written.push(name.clone());
            }
            names.push(name);
        }
        let config = image.config();
        let config_name = format!("{}.json", Digest::of(&config).hex());
        tar = tar.file(&config_name, &config);
        manifest.push(json!({"Config": config_name, "RepoTags": image.tags, "Layers": names}));
    }
    tar.file("manifest.json", Value::from(manifest).to_string().as_bytes()).bytes()
}

/// An OCI layout, piece by piece.
pub(crate) struct Layout {
    pub(crate) blobs: Vec<(String, Vec<u8>)>,
    pub(crate) index: Vec<Value>,
}

impl Layout {
    pub(crate) fn new() -> Layout {
        Layout { blobs: Vec::new(), index: Vec::new() }
    }

    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        let name = format!("blobs/sha256/{}", digest.hex());
        if !self.blobs.iter().any(|(known, _)| *known == name) {
            self.blobs.push((name, bytes.to_vec()));
        }
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    pub(crate) fn manifest(&mut self, image: &TestImage, layer_pack: Pack) -> Value {
        let config = self.blob("application/vnd.oci.image.config.v1+json", &image.config());
        let layers: Vec<Value> = image
            .layers
            .iter()
            .map(|layer| self.blob("application/vnd.oci.image.layer.v1.tar", &pack(layer, layer_pack)))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": layers,
        });
        self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())
    }

    pub(crate) fn add(&mut self, mut descriptor: Value, annotations: Value) {
        descriptor["annotations"] = annotations;
        self.index.push(descriptor);
    }

    pub(crate) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let index = json!({"schemaVersion": 2, "manifests": self.index});
        let mut files = self.blobs.clone();
        files.push(("index.json".to_owned(), index.to_string().into_bytes()));
        files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        files
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let files = self.files();
        files.iter().fold(Tar::new(), |tar, (name, bytes)| tar.file(name, bytes)).bytes()
    }
}

/// An OCI layout with one image, named as podman names it.
pub(crate) fn oci_layout(image: &TestImage, layer_pack: Pack) -> Vec<u8> {
    let mut layout = Layout::new();
    let manifest = layout.manifest(image, layer_pack);
    layout.add(manifest, json!({"org.opencontainers.image.ref.name": image.tags[0]}));
    layout.bytes()
}

/// A store in a directory of its own.
pub(crate) struct TestStore {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: ImageStore,
}

impl TestStore {
    /// `None`, with a message, where the tests cannot run.
    pub(crate) fn new() -> Option<TestStore> {
        TestStore::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Option<TestStore> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: unpacking layers needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path().join("images"), limits).unwrap();
        Some(TestStore { dir, store })
    }

    pub(crate) fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("images")
    }

    pub(crate) fn load(&self, bytes: &[u8]) -> Vec<runtime::image::Loaded> {
        self.store.load(bytes).unwrap()
    }
}
