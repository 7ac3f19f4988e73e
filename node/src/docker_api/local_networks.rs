//! Networks of the asked host alone, as Docker's clients know them: for containers that belong to no service.

use std::net::Ipv4Addr;

use deploy::model::{LOCAL_DRIVER, NetworkSpec, Subnet};
use deploy::store::Store;
use overlay_net::kernel::mac_of;
use serde_json::{Map, Value, json};

use super::App;
use super::convert::{ipam_config, time_to_wire};
use super::error::ApiError;
use super::filters::Filters;
use super::host_networks::mac;
use super::image_prune::all_labels;
use super::resolve::resolve;
use super::wire;
use crate::agent::plain::{LocalError, LocalView, PlainError, SubnetError};
use crate::engine::{Consistency, Engine};

/// All of them; none where there are no containers of a host's own either.
pub(super) fn all<E: Engine>(app: &App<E>) -> Vec<LocalView> {
    app.engine.plain().map(|plain| plain.networks()).unwrap_or_default()
}

/// The one of this host that is meant, if none of the others (id and name each) is.
///
/// # Errors
/// When several fit.
pub(super) fn find<'a>(
    own: &'a [LocalView],
    others: impl Iterator<Item = (&'a str, &'a str)>,
    wanted: &str,
) -> Result<Option<&'a LocalView>, ApiError> {
    let own = own.iter().map(|view| (view.record.id.as_str(), view.record.spec.name.as_str(), Some(view)));
    let all: Vec<(&str, &str, Option<&LocalView>)> = own.chain(others.map(|(id, name)| (id, name, None))).collect();
    match resolve("network", wanted, all.iter(), |network| network.0, |network| network.1) {
        Ok(found) => Ok(found.2),
        Err(error) if error.status == hyper::StatusCode::NOT_FOUND => Ok(None),
        Err(error) => Err(error),
    }
}

/// Networks of the cluster, for [`find`].
pub(super) fn of_cluster(store: Option<&Store>) -> impl Iterator<Item = (&str, &str)> {
    let networks = store.into_iter().flat_map(Store::networks);
    networks.map(|network| (network.id.as_str(), network.spec.name.as_str()))
}

/// As lists have them.
pub(super) fn to_wire(view: &LocalView) -> wire::Network {
    let (record, spec) = (&view.record, &view.record.spec);
    let asked = spec.ipam4().map(ipam_config).unwrap_or_default();
    let config =
        wire::IpamConfig { subnet: Some(record.subnet.clone()), gateway: Some(record.gateway.clone()), ..asked };
    wire::Network {
        name: Some(spec.name.clone()),
        id: Some(record.id.clone()),
        created: Some(time_to_wire(record.created)),
        scope: Some("local".to_owned()),
        driver: Some(LOCAL_DRIVER.to_owned()),
        enable_ipv4: Some(true),
        enable_ipv6: Some(false),
        ipam: Some(wire::Ipam { driver: Some("default".to_owned()), options: None, config: Some(vec![config]) }),
        internal: Some(spec.internal),
        attachable: Some(spec.attachable),
        ingress: Some(false),
        config_from: Some(wire::ConfigFrom { network: Some(String::new()) }),
        config_only: Some(false),
        options: Some(spec.driver_options.clone()),
        labels: Some(spec.labels.clone()),
        ..wire::Network::default()
    }
}

/// The containers on it, by id.
pub(super) fn containers(view: &LocalView) -> Value {
    let prefix = Subnet::parse(&view.record.subnet).map_or(0, Subnet::prefix);
    let endpoint = |name: &str, id: &str, address: Ipv4Addr| {
        json!({
            "Name": name,
            "EndpointID": id,
            "MacAddress": mac(mac_of(address)),
            "IPv4Address": format!("{address}/{prefix}"),
            "IPv6Address": "",
        })
    };
    let users = view.users.iter();
    let containers: Map<String, Value> =
        users.map(|user| (user.container.clone(), endpoint(&user.name, &user.container, user.address))).collect();
    Value::Object(containers)
}

/// Whether a list shows it.
pub(super) fn passes(view: &LocalView, filters: &Filters, dangling: Option<bool>) -> bool {
    let (record, spec) = (&view.record, &view.record.spec);
    filters.prefix("id", &record.id)
        && filters.any("name", |name| spec.name.contains(name))
        && filters.exact("driver", LOCAL_DRIVER)
        && filters.exact("scope", "local")
        && filters.labels("label", &spec.labels)
        && filters.exact("type", "custom")
        && dangling.is_none_or(|yes| yes == view.users.is_empty())
}

/// Makes one; its id and a warning, if there is anything to say.
pub(super) async fn create<E: Engine>(app: &App<E>, spec: NetworkSpec) -> Result<(String, String), ApiError> {
    let plain = app.engine.plain()?;
    // A host that is no manager knows only those that it carries; `plain` sees to these.
    let store = app.engine.store(Consistency::Local).await.ok();
    if store.as_ref().is_some_and(|store| store.network_by_name(&spec.name).is_some()) {
        return Err(refused(PlainError::Local(LocalError::NameTaken(spec.name))));
    }
    let cluster = store.iter().flat_map(|store| {
        let pools = store.cluster().into_iter().flat_map(|cluster| &cluster.spec.default_addr_pool);
        let given = store.networks().filter_map(|network| Some(&network.allocation.as_ref()?.subnet));
        pools.chain(given).filter_map(|text| Subnet::parse(text)).collect::<Vec<_>>()
    });
    let (id, warning) = plain.create_network(spec, cluster.collect()).await.map_err(refused)?;
    Ok((id, warning.unwrap_or_default()))
}

/// Removes one that no container is on.
pub(super) async fn remove<E: Engine>(app: &App<E>, view: &LocalView) -> Result<(), ApiError> {
    app.engine.plain()?.remove_network(&view.record.id).await.map_err(refused)
}

/// Removes those that no container is on, and that the filters want; their names.
pub(super) async fn prune<E: Engine>(app: &App<E>, until: Option<i64>, filters: &Filters) -> Vec<String> {
    let mut removed = Vec::new();
    for view in all(app) {
        let (record, labels) = (&view.record, &view.record.spec.labels);
        let made = i64::try_from(record.created.nanos / 1_000_000_000);
        let wanted = view.users.is_empty()
            && until.is_none_or(|until| made.is_ok_and(|made| made < until))
            && all_labels(filters.values("label"), labels, true)
            && all_labels(filters.values("label!"), labels, false);
        // One that somebody has begun to use meanwhile stays.
        if wanted && remove(app, &view).await.is_ok() {
            removed.push(record.spec.name.clone());
        }
    }
    removed
}

/// A failure as Docker says it.
fn refused(error: PlainError) -> ApiError {
    match error {
        PlainError::Local(error) => of(error),
        other => ApiError::internal(crate::chain(&other)),
    }
}

/// A refusal as Docker says it.
pub(super) fn of(error: LocalError) -> ApiError {
    let text = error.to_string();
    match error {
        LocalError::NotFound(_) => ApiError::not_found(text),
        LocalError::NameTaken(_) => ApiError::conflict(text),
        LocalError::Refused(error) => error.into(),
        LocalError::Invalid(_) | LocalError::TooMany | LocalError::Subnet(SubnetError::Dry) => ApiError::invalid(text),
        LocalError::Subnet(SubnetError::Overlaps | SubnetError::WayOut { .. })
        | LocalError::Predefined(_)
        | LocalError::InUse { .. }
        | LocalError::AddressTaken { .. } => ApiError::forbidden(text),
        LocalError::Dry { .. } => ApiError::new(hyper::StatusCode::SERVICE_UNAVAILABLE, text),
    }
}
