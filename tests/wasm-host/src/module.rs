//! Where the filter's module is, and what it imports and exports.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context, Result};
use wasmtime::{Config, Engine, Module};

/// Overrides where the module is.
const PATH_VARIABLE: &str = "MOORING_WASM";

/// The filter as it was built.
pub struct Filter {
    pub(crate) engine: Engine,
    pub(crate) module: Module,
    /// Its size in bytes.
    pub size: u64,
}

impl Filter {
    /// The filter, compiled once for all threads: from `MOORING_WASM`, else where `cargo xtask build`
    /// puts it.
    ///
    /// # Errors
    /// If there is no file or it is no module.
    pub fn load() -> Result<&'static Self> {
        static FILTER: OnceLock<Result<Filter, String>> = OnceLock::new();
        let loaded = FILTER.get_or_init(|| Self::compile(&path()).map_err(|error| format!("{error:#}")));
        loaded.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// Whether the module is the one that `cargo xtask build` made, as a user gets it.
    pub fn is_finished() -> bool {
        env::var_os(PATH_VARIABLE).is_none()
    }

    /// What it imports, such as `env.proxy_log`.
    pub fn imports(&self) -> Vec<String> {
        self.module.imports().map(|import| format!("{}.{}", import.module(), import.name())).collect()
    }

    /// The names of what it exports.
    pub fn exports(&self) -> Vec<String> {
        self.module.exports().map(|export| export.name().to_owned()).collect()
    }

    fn compile(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| {
            let path = path.display();
            format!("no filter at {path}: run `cargo xtask build`, or set {PATH_VARIABLE} to a mooring.wasm")
        })?;
        let engine = Engine::new(&Config::new())?;
        let module = Module::new(&engine, &bytes)
            .map_err(anyhow::Error::from)
            .with_context(|| format!("{} is no module", path.display()))?;
        Ok(Self { engine, module, size: bytes.len() as u64 })
    }
}

fn path() -> PathBuf {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/mooring/mooring.wasm");
    env::var_os(PATH_VARIABLE).map_or_else(|| built.into(), PathBuf::from)
}
