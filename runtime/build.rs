//! Makes the process 1 that containers may ask for (`reaper/main.rs`) into a program of its own, for `include_bytes!`.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=reaper/main.rs");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let output = PathBuf::from(variable("OUT_DIR")).join("reaper");
    if !["x86_64", "aarch64"].contains(&variable("CARGO_CFG_TARGET_ARCH").as_str()) {
        // An empty one: the runtime refuses what needs it.
        std::fs::write(&output, []).expect("the output directory can be written");
        return;
    }
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "--crate-name=reaper", "--crate-type=bin", "--target", &variable("TARGET")]);
    for option in [
        "panic=abort",
        "opt-level=s",
        "lto=fat",
        "codegen-units=1",
        "strip=symbols",
        "relocation-model=static",
        "target-feature=+crt-static",
        // No C library, and one page of code.
        "link-args=-nostartfiles -nostdlib -static -Wl,--build-id=none -Wl,--no-eh-frame-hdr -Wl,-z,noseparate-code",
    ] {
        rustc.args(["-C", option]);
    }
    if let Some(linker) = std::env::var_os("RUSTC_LINKER") {
        rustc.arg("-C").arg([std::ffi::OsString::from("linker="), linker].into_iter().collect::<std::ffi::OsString>());
    }
    let status = rustc.arg("-o").arg(&output).arg("reaper/main.rs").status();
    assert!(matches!(&status, Ok(status) if status.success()), "cannot compile reaper/main.rs: {status:?}");
}
