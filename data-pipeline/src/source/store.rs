//! Section `data.store`: how object stores are reached.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, header::AUTHORIZATION};
use object_store::{
    ClientOptions, ObjectStore, RetryConfig,
    aws::AmazonS3Builder,
    client::{HttpConnector, ReqwestConnector},
    gcp::GoogleCloudStorageBuilder,
    http::{HttpBuilder, HttpStore},
};
use serde::{Deserialize, Serialize};

use super::{
    hub::{Hub, files_url},
    remote::Remote,
    url::{Kind, RemotePlace},
};
use crate::error::{Error, Result};

/// The server that `hf://` stands for.
const HUB: &str = "https://huggingface.co";
/// The variables that its token is in, as its own programs name them.
const HUB_TOKENS: [&str; 2] = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];
/// Requests in flight beyond this many are a slip of the pen: each has a thread that decodes.
const MOST_CONCURRENT: usize = 1024;

/// Section `data.store`. Keys, tokens and all else come from the variables `AWS_*`, `GOOGLE_*` and `HF_TOKEN`, or from
/// the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// URL of the server to ask instead of the usual one of `s3://` and `gs://`, or of `hf://`; not of both.
    pub endpoint: Option<String>,
    /// Region of the buckets (`s3://`).
    pub region: Option<String>,
    /// Reach the endpoint without encryption.
    pub allow_http: bool,
    /// Sign no request and send no token: for public buckets and data sets.
    pub anonymous: bool,
    /// How often a failed request is tried again; the pause between doubles from 0.1 to 10 seconds. None: 8 times while
    /// files are looked up, and for five minutes when they are read or the store says that it is asked too often.
    pub retries: Option<usize>,
    /// Seconds without a byte after which a request has failed.
    pub timeout_secs: u64,
    /// Requests in flight, per store and rank; so many row groups are fetched ahead at a time.
    pub concurrency: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            allow_http: false,
            anonymous: false,
            retries: None,
            timeout_secs: 30,
            concurrency: 8,
        }
    }
}

impl StoreConfig {
    /// Checks what can be checked without asking a server.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first setting that makes no sense.
    pub fn validate(&self) -> Result<()> {
        for (name, zero) in [("timeout_secs", self.timeout_secs == 0), ("concurrency", self.concurrency == 0)]
        {
            if zero {
                return Err(Error::Setting(format!("data.store.{name} = 0 makes no sense; use at least 1")));
            }
        }
        if self.concurrency > MOST_CONCURRENT {
            return Err(Error::Setting(format!(
                "data.store.concurrency = {} is too much; use at most {MOST_CONCURRENT}",
                self.concurrency
            )));
        }
        match &self.endpoint {
            Some(url) if !url.contains("://") => {
                Err(Error::Setting(format!("data.store.endpoint = '{url}' is no URL; write https://HOST")))
            }
            Some(url) if url.starts_with("http://") && !self.allow_http => Err(Error::Setting(format!(
                "data.store.endpoint = '{url}' is not encrypted; set data.store.allow_http = true if that is meant"
            ))),
            _ => Ok(()),
        }
    }

    /// The store that the place lies in. Its client tries nothing again: that is the business of `Remote`.
    pub(super) fn connect(&self, place: &RemotePlace) -> Result<Remote> {
        let failed = |error: object_store::Error| {
            Error::Setting(format!("the store of '{}' cannot be set up: {error}", place.url(&place.path)))
        };
        let mut hub = None;
        let store: Arc<dyn ObjectStore> = match place.kind {
            Kind::S3 => Arc::new(self.s3(&place.root).map_err(failed)?),
            Kind::Gcs => Arc::new(self.gcs(&place.root).map_err(failed)?),
            // The user wrote http:// where nothing is encrypted.
            Kind::Http => {
                let client = self.client().with_allow_http(true);
                Arc::new(plain_http(&place.root, client).map_err(failed)?)
            }
            Kind::Hub => {
                let server = self.endpoint.as_deref().unwrap_or(HUB);
                let client = self.hub_client()?;
                let lists = ReqwestConnector::default().connect(&client).map_err(failed)?;
                let has_token = client.get_default_headers().is_some();
                hub = Some(Hub::new(lists, server, &place.root, has_token));
                Arc::new(plain_http(&files_url(server, &place.root), client).map_err(failed)?)
            }
        };
        Ok(Remote::new(store, hub, self))
    }

    fn s3(&self, bucket: &str) -> object_store::Result<object_store::aws::AmazonS3> {
        let mut builder = AmazonS3Builder::new().with_client_options(self.client());
        for (key, value) in variables("AWS_") {
            if let Ok(key) = key.parse() {
                builder = builder.with_config(key, value);
            }
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        if self.allow_http {
            builder = builder.with_allow_http(true);
        }
        if self.anonymous {
            builder = builder.with_skip_signature(true);
        }
        builder.with_bucket_name(bucket).with_retry(once()).build()
    }

    fn gcs(&self, bucket: &str) -> object_store::Result<object_store::gcp::GoogleCloudStorage> {
        let client = self.client();
        let client = if self.allow_http { client.with_allow_http(true) } else { client };
        let mut builder = GoogleCloudStorageBuilder::new().with_client_options(client);
        for (key, value) in variables("GOOGLE_") {
            if let Ok(key) = key.parse() {
                builder = builder.with_config(key, value);
            }
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_base_url(endpoint);
        }
        if self.anonymous {
            builder = builder.with_skip_signature(true);
        }
        builder.with_bucket_name(bucket).with_retry(once()).build()
    }

    /// Of all servers the hub alone is told its token; the library leaves it out where a redirect leads elsewhere.
    fn hub_client(&self) -> Result<ClientOptions> {
        let client = self.client().with_allow_http(self.allow_http);
        let values = HUB_TOKENS.iter().filter_map(|name| std::env::var(name).ok());
        let token = values.map(|value| value.trim().to_owned()).find(|value| !value.is_empty());
        let Some(token) = token.filter(|_| !self.anonymous) else { return Ok(client) };
        let mut bearer = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
            let names = HUB_TOKENS.join(" or ");
            Error::Setting(format!("the value of {names} is no token; set it again, or unset it"))
        })?;
        bearer.set_sensitive(true);
        Ok(client.with_default_headers([(AUTHORIZATION, bearer)].into_iter().collect()))
    }

    /// A long column takes as long as it takes; only standing still is a failure.
    fn client(&self) -> ClientOptions {
        let patience = Duration::from_secs(self.timeout_secs);
        ClientOptions::new()
            .with_timeout_disabled()
            .with_read_timeout(patience)
            .with_connect_timeout(patience)
    }
}

fn plain_http(url: &str, client: ClientOptions) -> object_store::Result<HttpStore> {
    HttpBuilder::new().with_url(url).with_client_options(client).with_retry(once()).build()
}

fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// The environment's variables with a prefix, as the keys of builders.
fn variables(prefix: &str) -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .filter(move |(key, _)| key.starts_with(prefix))
        .map(|(key, value)| (key.to_ascii_lowercase(), value))
}
