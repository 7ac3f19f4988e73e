//! Images as an archive, in the form that Docker writes since its release 25: an OCI layout whose blobs
//! `manifest.json`, the list of before, names too. What `load` makes of it has the same ids and the same manifest
//! digests, because the blobs are those that came in.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use serde_json::json;

use super::build::header;
use super::catalog::{Catalog, Match, Record};
use super::digest::Digest;
use super::error::ImageError;
use super::ingest::to_json;
use super::lease::Lease;
use super::oci::{self, Descriptor, Index};
use super::reference::Reference;
use super::store::ImageStore;

/// What an archive will hold. The images stay in the store for as long as this lives.
#[derive(Debug)]
pub struct Saving {
    store: ImageStore,
    _lease: Lease,
    images: Vec<SavedImage>,
}

#[derive(Debug)]
struct SavedImage {
    record: Record,
    names: BTreeSet<Reference>,
}

impl ImageStore {
    /// Finds the images to save, and holds them. A name without a tag means all tags of its repository; an id or a
    /// digest, the image without its names.
    ///
    /// # Errors
    /// As [`ImageStore::resolve`], and when no name is given.
    pub fn save(&self, names: &[String]) -> Result<Saving, ImageError> {
        let lease = self.lease();
        let mut images: Vec<SavedImage> = Vec::new();
        let mut add = |record: &Record, name: Option<Reference>| -> Result<(), ImageError> {
            lease.image(&record.id.to_string())?;
            match images.iter_mut().find(|image| image.record.id == record.id) {
                Some(image) => image.names.extend(name),
                None => images.push(SavedImage { record: record.clone(), names: name.into_iter().collect() }),
            }
            Ok(())
        };
        let catalog = self.inner.catalog();
        for name in names {
            let tagged = repository(&catalog, name);
            for (record, name) in &tagged {
                add(record, Some(name.clone()))?;
            }
            if tagged.is_empty() {
                let (record, matched) = catalog.find(name)?;
                let name = match matched {
                    Match::Reference(name) => Some(name),
                    Match::Id => None,
                };
                add(record, name)?;
            }
        }
        if images.is_empty() {
            return Err(ImageError::NotFound { name: String::new() });
        }
        Ok(Saving { store: self.clone(), _lease: lease, images })
    }
}

/// All tags of a repository, where only that is named.
fn repository<'a>(catalog: &'a Catalog, name: &str) -> Vec<(&'a Record, Reference)> {
    let Ok(reference) = Reference::parse(name) else { return Vec::new() };
    let last = name.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) {
        return Vec::new();
    }
    let of = |image: &'a Record| image.references.iter().map(move |name| (image, name.clone()));
    let all = catalog.images.values().flat_map(of);
    all.filter(|(_, name)| name.same_repository(&reference)).collect()
}

impl Saving {
    /// Writes the archive. The same images give the same bytes.
    ///
    /// # Errors
    /// [`ImageError::Io`], also for the writer's own failures.
    pub fn write(&self, out: impl Write) -> Result<(), ImageError> {
        let mut tar = tar::Builder::new(out);
        for directory in ["blobs/", "blobs/sha256/"] {
            let mut header = header(tar::EntryType::Directory, 0o755, 0);
            tar.append_data(&mut header, directory, io::empty()).map_err(failed)?;
        }
        for digest in self.blobs() {
            let Some((file, size)) = self.store.open_blob(&digest)? else {
                return Err(ImageError::Missing {
                    what: format!("blob {digest}"),
                    needed_by: "the archive".to_owned(),
                });
            };
            let mut header = header(tar::EntryType::Regular, 0o644, size);
            let name = format!("blobs/sha256/{}", digest.hex());
            tar.append_data(&mut header, name, file).map_err(failed)?;
        }
        let index = to_json(&self.index())?;
        let list = to_json(&self.list())?;
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        let documents = [("index.json", &index[..]), ("manifest.json", &list[..]), ("oci-layout", &layout[..])];
        for (name, content) in documents {
            let mut header = header(tar::EntryType::Regular, 0o644, content.len() as u64);
            tar.append_data(&mut header, name, content).map_err(failed)?;
        }
        tar.into_inner().and_then(|mut out| out.flush()).map_err(failed)?;
        for image in &self.images {
            let id = image.record.id.to_string();
            self.store.inner.tell("save", id.as_str(), id.as_str(), &image.record.config.labels);
        }
        Ok(())
    }

    /// Every blob once. The manifest that an image is known by goes with it; others of the same image do not.
    fn blobs(&self) -> BTreeSet<Digest> {
        let mut blobs = BTreeSet::new();
        for image in &self.images {
            blobs.insert(image.record.id);
            if let Some(manifest) = image.record.manifests.first() {
                blobs.insert(manifest.digest);
                blobs.extend(&manifest.layer_blobs);
            }
        }
        blobs
    }

    fn index(&self) -> Index {
        let mut manifests = Vec::new();
        for image in &self.images {
            let Some(manifest) = image.record.manifests.first() else { continue };
            let descriptor = Descriptor::new(oci::MANIFEST, &manifest.digest, manifest.size);
            if image.names.is_empty() {
                manifests.push(descriptor.clone());
            }
            for name in &image.names {
                let annotations = BTreeMap::from([
                    (oci::CONTAINERD_NAME.to_owned(), name.canonical()),
                    (oci::REF_NAME.to_owned(), name.tag().unwrap_or_default().to_owned()),
                ]);
                manifests.push(Descriptor { annotations: Some(annotations), ..descriptor.clone() });
            }
        }
        Index { schema_version: 2, media_type: Some(oci::INDEX.to_owned()), manifests }
    }

    fn list(&self) -> serde_json::Value {
        let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let images = self.images.iter().map(|image| {
            let names: Vec<String> = image.names.iter().map(Reference::to_string).collect();
            let layers = image.record.manifests.first().into_iter().flat_map(|manifest| &manifest.layer_blobs);
            json!({
                "Config": path(&image.record.id),
                "RepoTags": if names.is_empty() { serde_json::Value::Null } else { json!(names) },
                "Layers": layers.map(path).collect::<Vec<_>>(),
            })
        });
        images.collect()
    }
}

fn failed(error: io::Error) -> ImageError {
    ImageError::Io { operation: "write", path: "the archive".into(), source: error }
}
