//! What others make of the same archives, where they are installed: `umoci` of whole images, GNU tar of single layers.
//!
//! Only of archives that all of them take: as good programs write them, and without entries that go through links, which
//! those tools follow or replace in ways of their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::images::{Layout, PACKS, TestImage};
use super::tar::{Manner, stream};
use super::tree::describe;
use super::{not_root, scratch};
use crate::fuzz::fuzz;

fn installed(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: there is no {program} to compare with");
    }
    found
}

/// What a tree looks like, but for what archives do not say: the times of directories that no entry names, and links
/// that follow whichever name came first.
fn comparable(root: &Path) -> BTreeMap<String, String> {
    let mut tree = describe(root);
    tree.retain(|name, _| !name.is_empty());
    for text in tree.values_mut() {
        if text.starts_with('4') {
            *text = text.split(" at ").next().unwrap_or_default().to_owned();
        }
    }
    tree
}

/// GNU tar and this unpacker make the same of one layer.
#[test]
fn as_tar_unpacks() {
    if not_root() || !installed("tar") {
        return;
    }
    let mut compared = 0;
    fuzz("as_tar_unpacks", 60, |source| {
        let bytes = stream(source, Manner::Good, "/nowhere");
        let dir = scratch();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        std::fs::create_dir(&ours).unwrap();
        std::fs::create_dir(&theirs).unwrap();
        if super::layers::unpack(&bytes, &ours).is_err() {
            return;
        }
        std::fs::write(dir.path().join("layer.tar"), &bytes).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--file", "../layer.tar", "--same-owner", "--numeric-owner", "--same-permissions"]);
        tar.args(["--xattrs", "--xattrs-include=*", "--unlink-first", "--absolute-names", "--warning=none"]);
        let output = tar.current_dir(&theirs).output().unwrap();
        if !output.status.success() {
            // It does not replace one kind of thing by another.
            return;
        }
        compared += 1;
        assert_eq!(comparable(&ours), comparable(&theirs), "{}", String::from_utf8_lossy(&output.stderr));
    });
    assert!(compared > 0);
}

/// `umoci` and this store make the same of an image's layers, one on the other.
#[test]
fn as_umoci_unpacks() {
    if not_root() || !installed("umoci") {
        return;
    }
    let (mut compared, mut refused) = (0, 0);
    fuzz("as_umoci_unpacks", 12, |source| {
        let layers = vec![stream(source, Manner::Good, "/nowhere")];
        let image = TestImage::new("web", layers);
        let mut layout = Layout::new();
        let form = PACKS[source.below(2)];
        let types = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+gzip"];
        let config = layout.blob("application/vnd.oci.image.config.v1+json", &image.config());
        let blob = super::images::pack(&image.layers[0], form);
        let layer = layout.blob(types[usize::from(form == super::images::Pack::Gzip)], &blob);
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer] });
        let manifest = layout.blob(media_type, manifest.to_string().as_bytes());
        layout.add(manifest, json!({ "org.opencontainers.image.ref.name": "web" }));
        let dir = scratch();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        std::fs::create_dir(&ours).unwrap();
        if super::layers::unpack(&image.layers[0], &ours).is_err() {
            return;
        }
        for (name, bytes) in layout.files() {
            let path = dir.path().join("layout").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let mut umoci = Command::new("umoci");
        umoci.args(["unpack", "--image", "layout:web", "theirs"]);
        let output = umoci.current_dir(dir.path()).output().unwrap();
        if !output.status.success() {
            // It does not pass over users' attributes of links and pipes, and follows other links than this one does.
            refused += 1;
            return;
        }
        compared += 1;
        assert_eq!(comparable(&ours), comparable(&theirs.join("rootfs")));
    });
    assert!(compared > refused, "{compared} compared, {refused} refused");
}
