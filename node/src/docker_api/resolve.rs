//! From what a user typed to an object: the full id, else the exact name, else the only id that begins so.

use super::error::ApiError;

/// Finds the object that `wanted` means. `kind` is Docker's word for it, as in `service web not found`.
///
/// # Errors
/// 404 when there is none; 400 when several fit.
pub(crate) fn resolve<'a, T: 'a>(
    kind: &str,
    wanted: &str,
    objects: impl Iterator<Item = &'a T> + Clone,
    id: impl Fn(&T) -> &str,
    name: impl Fn(&T) -> &str,
) -> Result<&'a T, ApiError> {
    if wanted.is_empty() {
        return Err(ApiError::invalid(format!("{kind} name or id must be given")));
    }
    let by = |fits: &dyn Fn(&T) -> bool| objects.clone().filter(|o| fits(o)).take(2).collect::<Vec<_>>();
    for found in [by(&|o| id(o) == wanted), by(&|o| name(o) == wanted), by(&|o| id(o).starts_with(wanted))] {
        match found[..] {
            [] => {}
            [one] => return Ok(one),
            _ => {
                return Err(ApiError::invalid(format!("{kind} {wanted} is ambiguous: several match, use the full id")));
            }
        }
    }
    Err(ApiError::not_found(format!("{kind} {wanted} not found")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(wanted: &str, expected: Result<&str, u16>) {
        let objects = [("abc", "web"), ("abd", "db"), ("web", "abc"), ("x1", "twin"), ("x2", "twin")];
        let got = resolve("thing", wanted, objects.iter(), |o| o.0, |o| o.1);
        assert_eq!(got.map(|o| o.0).map_err(|e| e.status.as_u16()), expected, "{wanted}");
    }

    #[test]
    fn id_before_name_before_prefix() {
        check("abc", Ok("abc"));
        check("web", Ok("web"));
        check("db", Ok("abd"));
        check("abd", Ok("abd"));
        check("ab", Err(400));
        check("twin", Err(400));
        check("x1", Ok("x1"));
        check("we", Ok("web"));
        check("nothing", Err(404));
        check("", Err(400));
    }
}
