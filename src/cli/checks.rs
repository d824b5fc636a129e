//! What a value on the command line must be, where its type does not say it: addresses, URLs, files, prefixes.

use std::{
    fs, io,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    str::FromStr as _,
};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

/// The URL of a member of etcd: `http://` or `https://`, a host, and a port where it is not the scheme's own. The scheme may be
/// missing.
pub(super) fn etcd_url(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("is empty; members are separated by one comma: URL,URL".to_owned());
    }
    if text.contains(char::is_whitespace) {
        return Err("has a space in it; members are separated by a comma alone: URL,URL".to_owned());
    }
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    if let Some(scheme) = scheme.filter(|scheme| !matches!(*scheme, "http" | "https")) {
        return Err(format!("'{scheme}' is not a scheme of etcd's: write http:// or https://"));
    }
    let whole = if scheme.is_some() { text.to_owned() } else { format!("http://{text}") };
    let uri =
        http::Uri::from_str(&whole).map_err(|error| format!("is not a URL such as http://10.0.0.1:2379: {error}"))?;
    let authority = uri.authority().ok_or_else(|| "has no host in it, as http://10.0.0.1:2379 does".to_owned())?;
    if authority.as_str().contains('@') {
        return Err("has a user in it: give --etcd-user and --etcd-password-file".to_owned());
    }
    if authority.host().is_empty() || authority.host() == "[]" {
        return Err("has no host in it, as http://10.0.0.1:2379 does".to_owned());
    }
    let after_host = authority.as_str().get(authority.host().len()..).unwrap_or_default();
    if !after_host.is_empty() && authority.port_u16().is_none_or(|port| port == 0) {
        return Err("has a port that is none: 1 to 65535".to_owned());
    }
    if uri.path_and_query().is_some_and(|path| path.as_str() != "/") {
        return Err("has a path in it: etcd's members have none".to_owned());
    }
    Ok(text.to_owned())
}

/// The address of a host on the underlay.
pub(super) fn vtep(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text.parse().map_err(|_| "is not an IP address such as 192.168.205.10".to_owned())?;
    let what = match ip {
        _ if ip.is_loopback() => "a loopback address: no other host reaches it",
        _ if ip.is_unspecified() => "the unspecified address: give the one that other hosts reach this one at",
        _ if ip.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V6(v6) if Ipv6Addr::to_ipv4_mapped(&v6).is_some() => {
            "an IPv4 address written as IPv6: write it as IPv4"
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address: VXLAN needs one that routes lead to",
        _ => return Ok(ip),
    };
    Err(format!("is {what}"))
}

/// A prefix of keys.
pub(super) fn prefix(text: &str) -> Result<String, String> {
    match text {
        _ if text.trim_end_matches('/').is_empty() => Err("is empty: it would be all of etcd".to_owned()),
        _ if text.contains(|c: char| c.is_whitespace() || c.is_control()) => Err("has a space in it".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

/// A directory by its whole path.
pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("is not an absolute path such as /run/netns".to_owned()) }
}

/// A file that can be read now.
pub(super) fn readable(text: &str) -> Result<PathBuf, String> {
    let bytes = read(text)?;
    if bytes.trim_ascii().is_empty() { Err("is an empty file".to_owned()) } else { Ok(text.into()) }
}

/// A file with certificates.
pub(super) fn certificates(text: &str) -> Result<PathBuf, String> {
    let bytes = read(text)?;
    let mut found = 0;
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        certificate.map_err(|error| format!("holds a certificate that is no PEM: {error}"))?;
        found += 1;
    }
    if found == 0 { Err("has no certificate (PEM) in it".to_owned()) } else { Ok(text.into()) }
}

/// A file with a private key.
pub(super) fn private_key(text: &str) -> Result<PathBuf, String> {
    let bytes = read(text)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| "has no private key (PEM) in it".to_owned())?;
    Ok(text.into())
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => format!("cannot be read: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_of_etcd_is_a_host_by_http_or_https() {
        for good in [
            "http://10.0.0.1:2379",
            "https://etcd.example:2379/",
            "10.0.0.1:2379",
            "http://[fd00::1]:2379",
            "http://etcd",
        ] {
            assert!(etcd_url(good).is_ok(), "{good}: {:?}", etcd_url(good));
        }
        for bad in [
            "",
            " http://10.0.0.1:2379",
            "foo://x",
            "http://",
            "http://10.0.0.1:0",
            "http://10.0.0.1:99999",
            "http://10.0.0.1:",
            "http://10.0.0.1:x",
            "http://:2379",
            "http://a:b@10.0.0.1:2379",
            "http://10.0.0.1:2379/v3",
            "http://10.0.0.1:2379?x",
            "http:/10.0.0.1",
            "fd00::1:2379",
        ] {
            assert!(etcd_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_vtep_is_an_address_that_other_hosts_reach() {
        for good in ["192.168.205.10", "fd00::1"] {
            assert!(vtep(good).is_ok(), "{good}");
        }
        let bad = ["", "x", "127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "fe80::1"];
        for bad in bad.into_iter().chain(["10.0.0.1/24", "::ffff:10.0.0.1", "ff02::1"]) {
            assert!(vtep(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_is_not_all_of_etcd() {
        assert!(prefix("/vtepd/v1").is_ok());
        for bad in ["", "/", "//", "/vtepd /v1", "/vtepd/v1\n"] {
            assert!(prefix(bad).is_err(), "{bad:?}");
        }
    }
}
