//! Deletes bootstrap tokens that have expired: it sleeps until the next one does.

use super::super::Tools;
use super::super::runner::{Reconcile, Source};
use crate::api::object::ObjectExt;
use crate::api::status::Result;
use crate::client::informer::Scope;
use crate::client::{DeleteOptions, Informer, SECRETS};
use crate::pki::bootstrap::{BootstrapToken, NAMESPACE, SECRET_TYPE};
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;

pub struct Controller {
    tools: Tools,
    tokens: Informer,
}

impl Controller {
    pub fn new(tools: &Tools) -> (Arc<Self>, Vec<Source>) {
        let scope = Scope {
            namespace: NAMESPACE.to_owned(),
            field_selector: format!("type={SECRET_TYPE}"),
            ..Scope::default()
        };
        let tokens = tools.informers.get(SECRETS, scope);
        let sources = vec![Source::own(&tokens)];
        (Arc::new(Self { tools: tools.clone(), tokens }), sources)
    }

    async fn sync(&self, key: &str) -> Result<Option<Duration>> {
        let Some(item) = self.tokens.by_key(key) else { return Ok(None) };
        let secret = item.object()?;
        let Some(expires) = BootstrapToken::of(&secret).ok().and_then(|token| token.expires) else { return Ok(None) };
        let now = self.tools.clock.now();
        if expires > now {
            return Ok(Duration::try_from(expires - now).ok());
        }
        tracing::info!(token = secret.name(), "join token has expired; deleting it");
        let options = DeleteOptions { uid: Some(secret.uid().to_owned()), ..DeleteOptions::default() };
        match self.tools.client.delete(SECRETS, NAMESPACE, secret.name(), &options).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(None),
        }
    }
}

impl Reconcile for Controller {
    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Duration>>> {
        Box::pin(self.sync(key))
    }
}
