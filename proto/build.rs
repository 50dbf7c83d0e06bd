//! Compiles the `.proto` files without a `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["coordinator.proto", "oracle.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    // The largest message is the first of a stream; boxing it would gain nothing.
    let large = "#[allow(clippy::large_enum_variant)]";
    // Commands print the state they get with --json as it is on the wire.
    tonic_prost_build::configure()
        .type_attribute(".trace.coordinator", "#[derive(serde::Serialize)]")
        .type_attribute(".trace.oracle", "#[derive(serde::Serialize)]")
        .enum_attribute(".trace.coordinator", large)
        .compile_fds(protox::compile(files, ["."])?)?;
    Ok(())
}
