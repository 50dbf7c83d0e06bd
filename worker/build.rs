//! Gives the binaries and tests of this package a search path for libtorch, so that they run without `LD_LIBRARY_PATH`.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    let Some(libtorch) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        return;
    };
    match libtorch.join("lib").canonicalize() {
        Ok(lib) => println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display()),
        Err(error) => println!(
            "cargo:warning={}/lib: {error}; run deploy/libtorch.sh, or point LIBTORCH at libtorch 2.13",
            libtorch.display()
        ),
    }
}
