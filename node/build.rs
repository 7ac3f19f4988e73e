//! Compiles proto/node.proto without a protoc on the machine, and links the binary at a fixed address.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto/node.proto");
    let descriptors = protox::compile(["proto/node.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".shoal.node.v1.LogChunk.data")
        .bytes(".shoal.node.v1.BlobPiece.data")
        .compile_fds(descriptors)?;
    link_at_a_fixed_address();
    Ok(())
}

/// A static binary that can be loaded anywhere relocates itself at its start: half a megabyte of pages becomes private
/// to each shim, and each start of a shim begins with 34 000 relocations. Linked at a fixed address it has none.
/// ARCHITECTURE.md says what that costs. `chaos-tests/build.rs` does the same for the binary of the tests.
fn link_at_a_fixed_address() {
    let is = |name: &str, wanted: &str| std::env::var(name).is_ok_and(|value| value == wanted);
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && features.split(',').any(|feature| feature == "crt-static")
    {
        // The later of `-static-pie`, which rustc gives, and `-no-pie` holds.
        println!("cargo:rustc-link-arg-bins=-no-pie");
        println!("cargo:rustc-link-arg-bins=-static");
    }
}
