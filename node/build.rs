//! Compiles proto/node.proto without a protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/node.proto");
    let descriptors = protox::compile(["proto/node.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".shoal.node.v1.LogChunk.data").compile_fds(descriptors)?;
    Ok(())
}
