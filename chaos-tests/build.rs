//! Links this crate's `shoal` as `node/build.rs` links the real one, for what is measured with it is said of that one.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, wanted: &str| std::env::var(name).is_ok_and(|value| value == wanted);
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && features.split(',').any(|feature| feature == "crt-static")
    {
        println!("cargo:rustc-link-arg-bins=-no-pie");
        println!("cargo:rustc-link-arg-bins=-static");
    }
}
