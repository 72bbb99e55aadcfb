//! From a kubeconfig to a client: how every remote subcommand reaches its server.

use crate::client::Remote;
use crate::client::kubeconfig::Access;
use anyhow::Context;
use std::path::{Path, PathBuf};

/// Where `edgelet server` writes the admin's access.
const SERVER_KUBECONFIG: &str = "/var/lib/edgelet/kubeconfig";

/// Flags of every subcommand that speaks to a server.
#[derive(clap::Args)]
pub struct Connection {
    /// Kubeconfig file [default: $KUBECONFIG, the server's own, ~/.kube/config]
    // The variable is read below: clap would count it as given, and show it in every usage line.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long)]
    pub context: Option<String>,
    /// Namespace [default: the context's]
    #[arg(short, long)]
    pub namespace: Option<String>,
}

impl Connection {
    pub fn open(&self) -> anyhow::Result<Remote> {
        let path = self.path()?;
        let access = Access::load(&path, self.context.as_deref())?;
        let resolver = crate::network::resolve::Resolver::default();
        Ok(Remote::new(access, resolver)?)
    }

    /// The namespace asked for, or the context's.
    pub fn namespace(&self, remote: &Remote) -> String {
        self.namespace.clone().unwrap_or_else(|| remote.access().namespace.clone())
    }

    fn path(&self) -> anyhow::Result<PathBuf> {
        let variable = || std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        if let Some(path) = self.kubeconfig.clone().or_else(variable) {
            return Ok(path);
        }
        let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
        let mut places = vec![PathBuf::from(SERVER_KUBECONFIG)];
        places.extend(home);
        let readable = |path: &&PathBuf| std::fs::File::open(path).is_ok();
        places.iter().find(readable).cloned().with_context(|| {
            let tried: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
            format!("no kubeconfig can be read (tried {}): name one with --kubeconfig", tried.join(", "))
        })
    }
}
