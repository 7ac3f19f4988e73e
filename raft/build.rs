//! Compiles `proto/raft.proto` without a `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/raft.proto");
    let descriptors = protox::compile(["proto/raft.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".shoal.raft.v1.Entry.data")
        .bytes(".shoal.raft.v1.ForwardRequest.payloads")
        .bytes(".shoal.raft.v1.SnapshotChunk.data")
        .compile_fds(descriptors)?;
    Ok(())
}
