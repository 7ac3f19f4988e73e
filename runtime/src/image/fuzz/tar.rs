//! Writes tar streams entry by entry, with every field at the writer's mercy.

use crate::fuzz::Source;

/// What a stream is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// As good programs write them.
    Good,
    /// With names, links and numbers that nobody writes.
    Hostile,
}

struct Writer<'a> {
    source: &'a mut Source,
    manner: Manner,
    /// A directory of the host that must stay as it is.
    outside: &'a str,
    bytes: Vec<u8>,
    names: Vec<Vec<u8>>,
}

/// A stream of some entries, with its end marker.
pub(super) fn stream(source: &mut Source, manner: Manner, outside: &str) -> Vec<u8> {
    let entries = 1 + source.below(14);
    let mut writer = Writer { source, manner, outside, bytes: Vec::new(), names: Vec::new() };
    for _ in 0..entries {
        writer.entry();
    }
    if manner == Manner::Good || !writer.source.one_in(10) {
        writer.bytes.extend([0; 1024]);
    }
    writer.bytes
}

impl Writer<'_> {
    fn rarely(&mut self, count: usize) -> bool {
        self.manner == Manner::Hostile && self.source.one_in(count)
    }

    fn part(&mut self) -> Vec<u8> {
        const GOOD: [&[u8]; 9] = [b"a", b"b", b"c", b"dir", b"dir", b"a", b"b", b"with space", b"\xc3\xa4"];
        const ODD: [&[u8]; 14] = [
            b"..",
            b".",
            b"",
            b".wh.a",
            b".wh.dir",
            b".wh.",
            b".wh..wh..opq",
            b".wh..wh.plnk",
            b".wh..",
            b".wh...",
            b"\xff\xfe",
            b"new\nline",
            b"back\\slash",
            b"...",
        ];
        if self.rarely(300) {
            return vec![b'n'; *self.source.pick(&[&254, &255, &256, &4000])];
        }
        if self.rarely(5) { self.source.pick(&ODD).to_vec() } else { self.source.pick(&GOOD).to_vec() }
    }

    fn name(&mut self) -> Vec<u8> {
        if !self.names.is_empty() && self.source.one_in(3) {
            let known = self.names[self.source.below(self.names.len())].clone();
            if self.source.one_in(2) {
                return known;
            }
            let part = self.part();
            return [known, part].join(&b'/');
        }
        let depth = 1 + self.source.below(4);
        let mut name = (0..depth).map(|_| self.part()).collect::<Vec<_>>().join(&b'/');
        if self.rarely(200) {
            name = [name, b"d/".repeat(self.source.below(2200))].join(&b'/');
        }
        if self.rarely(12) {
            name.insert(0, b'/');
        }
        name
    }

    fn link(&mut self) -> Vec<u8> {
        let mut link = self.name();
        if self.manner == Manner::Hostile {
            match self.source.below(8) {
                0 => link = self.outside.as_bytes().to_vec(),
                1 => link = [b"../".repeat(1 + self.source.below(12)), self.outside.as_bytes().to_vec()].concat(),
                2 => link = b"../".repeat(1 + self.source.below(4)),
                3 => link = b"/".to_vec(),
                4 => link.insert(0, b'/'),
                _ => {}
            }
        }
        link
    }

    fn entry(&mut self) {
        let kind = if self.rarely(40) {
            self.source.next() as u8
        } else {
            *self.source.pick(&[&b'0', &b'0', &b'0', &b'5', &b'5', &b'2', &b'2', &b'1', &b'1', &b'3', &b'6', &b'\0'])
        };
        // Links that lead nowhere are refused, and nothing behind them is seen.
        let target = if kind == b'1' && !self.names.is_empty() && !self.rarely(4) {
            self.names[self.source.below(self.names.len())].clone()
        } else {
            self.link()
        };
        let mut name = self.name();
        if self.manner == Manner::Good && kind != b'5' {
            // Some take a file for a directory then, and some do not.
            while name.last() == Some(&b'/') {
                name.pop();
            }
        }
        if kind == b'5' && self.source.one_in(2) {
            name.push(b'/');
        }
        if self.rarely(12) {
            self.sparse(name);
            return;
        }
        let content = if matches!(kind, b'0' | b'\0') {
            let length = *self.source.pick(&[&0, &1, &511, &512, &513, &3000]);
            self.source.bytes(length)
        } else {
            Vec::new()
        };
        self.extensions(&name, &target, content.len());
        let stated = if self.rarely(30) { self.source.next() >> self.source.below(64) } else { content.len() as u64 };
        self.header(&name, &target, kind, stated);
        self.bytes.extend(&content);
        self.pad();
        self.names.push(name);
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(length, 0);
    }

    /// Extended headers, where they are needed, and where they are not.
    fn extensions(&mut self, name: &[u8], target: &[u8], size: usize) {
        let long = name.len() > 100 || target.len() > 100;
        if long && self.source.one_in(2) {
            self.gnu(b'L', name);
            self.gnu(b'K', target);
            return;
        }
        if !long && !self.source.one_in(4) {
            return;
        }
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut add = |key: &str, value: &[u8]| records.push((key.as_bytes().to_vec(), value.to_vec()));
        if long {
            add("path", name);
            add("linkpath", target);
        }
        if self.source.one_in(2) {
            add(
                "mtime",
                self.source.pick(&["1", "1700000000.123456789", "1600000000.5", "-1.25", "0", "12345.678"]).as_bytes(),
            );
        }
        if self.source.one_in(3) {
            add("SCHILY.xattr.user.test", b"value\0with\nall");
        }
        if self.manner == Manner::Hostile {
            for _ in 0..self.source.below(3) {
                let key = self.source.pick(&[
                    "path",
                    "linkpath",
                    "size",
                    "uid",
                    "gid",
                    "mtime",
                    "GNU.sparse.major",
                    "SCHILY.xattr.",
                    "comment",
                    "SCHILY.xattr.trusted.overlay.opaque",
                    "SCHILY.xattr.trusted.shoal.implied",
                    "hdrcharset",
                    "",
                    "SCHILY.xattr.user.overlay.redirect",
                    "SCHILY.xattr.security.capability",
                    "SCHILY.xattr.bad",
                    "SCHILY.xattr.system.posix_acl_access",
                    "SCHILY.xattr.user.",
                ]);
                let value = match self.source.below(6) {
                    0 => name.to_vec(),
                    1 => self.source.bytes(20),
                    2 => size.to_string().into_bytes(),
                    3 => self.source.next().to_string().into_bytes(),
                    4 => b"-9223372036854775808.999999999".to_vec(),
                    _ => self
                        .source
                        .pick(&["", "y", "4294967295", "0", "../../x", "-1", "1e9", "9999999999999999999999"])
                        .into(),
                };
                records.push((key.as_bytes().to_vec(), value));
            }
        }
        let mut content: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        if self.rarely(10) {
            self.source.mangle(&mut content);
        }
        let kind = if self.rarely(10) { b'g' } else { b'x' };
        self.header(b"pax", b"", kind, content.len() as u64);
        self.bytes.extend(content);
        self.pad();
    }

    /// A file with holes, in one of the formats; its map may lie.
    fn sparse(&mut self, name: Vec<u8>) {
        let (mut map, mut end, mut stored) = (Vec::new(), 0, 0);
        for _ in 0..self.source.below(30) {
            let (gap, length) = (self.source.below(3000) as u64, self.source.below(700) as u64);
            map.extend([end + gap, length]);
            end += gap + length;
            stored += length;
        }
        if self.rarely(6) && !map.is_empty() {
            let at = self.source.below(map.len());
            map[at] = self.source.next() >> self.source.below(64);
        }
        let content = self.source.bytes(usize::try_from(stored).unwrap());
        let size = end + self.source.below(3000) as u64;
        if self.source.one_in(3) {
            return self.gnu_sparse(name, &map, size, &content);
        }
        let texts: Vec<String> = map.iter().map(u64::to_string).collect();
        let (map_records, lines) = match self.source.below(3) {
            0 => {
                let keys = [&b"GNU.sparse.offset"[..], b"GNU.sparse.numbytes"].into_iter().cycle();
                let records = keys.zip(&texts).map(|(key, text)| record(key, text.as_bytes())).collect::<Vec<_>>();
                (records.concat(), Vec::new())
            }
            1 => (record(b"GNU.sparse.map", texts.join(",").as_bytes()), Vec::new()),
            _ => {
                let numbers = [&[(map.len() / 2).to_string()], &*texts].concat();
                let mut lines = (numbers.join("\n") + "\n").into_bytes();
                if self.rarely(8) {
                    self.source.mangle(&mut lines);
                }
                lines.resize(lines.len().next_multiple_of(512), 0);
                let version = [record(b"GNU.sparse.major", b"1"), record(b"GNU.sparse.minor", b"0")];
                (version.concat(), lines)
            }
        };
        let records = [map_records, record(b"GNU.sparse.size", size.to_string().as_bytes())].concat();
        self.header(b"pax", b"", b'x', records.len() as u64);
        self.bytes.extend(records);
        self.pad();
        self.header(&name, b"", b'0', (lines.len() + content.len()) as u64);
        self.bytes.extend(lines);
        self.bytes.extend(content);
        self.pad();
        self.names.push(name);
    }

    /// The same in GNU's own header, and in as many blocks behind it as that takes; where they end may be a lie.
    fn gnu_sparse(&mut self, name: Vec<u8>, map: &[u64], size: u64, content: &[u8]) {
        let slots: Vec<u8> =
            map.iter().flat_map(|number| format!("{:011o}\0", number & 0o777_7777_7777).into_bytes()).collect();
        let (first, rest) = slots.split_at(slots.len().min(96));
        let at = self.bytes.len();
        self.header(&name, b"", b'S', content.len() as u64);
        let block = &mut self.bytes[at..];
        block[257..265].copy_from_slice(b"ustar  \0");
        block[345..].fill(0);
        block[386..386 + first.len()].copy_from_slice(first);
        block[483..495].copy_from_slice(format!("{size:011o}\0").as_bytes());
        let mut extended = !rest.is_empty();
        block[482] = u8::from(extended);
        if self.rarely(6) {
            extended = self.source.one_in(2);
            self.bytes[at + 482] = self.source.next() as u8;
        }
        let sum: u32 = self.bytes[at..]
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        self.bytes[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let blocks = rest.chunks(21 * 24);
        let last = blocks.len().saturating_sub(1);
        for (number, slots) in blocks.enumerate().filter(|_| extended) {
            let mut block = [0; 512];
            block[..slots.len()].copy_from_slice(slots);
            block[504] = if self.rarely(10) { self.source.next() as u8 } else { u8::from(number != last) };
            self.bytes.extend(block);
        }
        self.bytes.extend(content);
        self.pad();
        self.names.push(name);
    }

    fn gnu(&mut self, kind: u8, text: &[u8]) {
        self.header(b"././@LongLink", b"", kind, text.len() as u64 + 1);
        self.bytes.extend(text);
        self.bytes.push(0);
        self.pad();
    }

    fn number(&mut self, field: &mut [u8], value: u64) {
        let digits = field.len() - 1;
        if self.rarely(60) {
            let noise = self.source.bytes(field.len());
            field.copy_from_slice(&noise);
        } else if value >= 1 << (3 * digits).min(63) || self.rarely(40) {
            // GNU's binary form.
            field.fill(0);
            let bytes = value.to_be_bytes();
            let length = field.len().min(8);
            let at = field.len() - length;
            field[at..].copy_from_slice(&bytes[8 - length..]);
            field[0] |= 0x80;
        } else {
            field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
            field[digits] = 0;
        }
    }

    fn header(&mut self, name: &[u8], target: &[u8], kind: u8, size: u64) {
        let mut block = [0_u8; 512];
        let cut = name.len().min(100);
        block[..cut].copy_from_slice(&name[..cut]);
        let cut = target.len().min(100);
        block[157..157 + cut].copy_from_slice(&target[..cut]);
        let mode = if self.rarely(20) {
            self.source.next() & 0o7777_7777
        } else {
            *self.source.pick(&[&0o644, &0o755, &0o4711, &0])
        };
        let (uid, gid) = (*self.source.pick(&[&0, &1000, &70_000]), *self.source.pick(&[&0, &5, &2_000_000]));
        let mtime = if self.rarely(20) { self.source.next() } else { 1_000_000_000 + self.source.below(1000) as u64 };
        let major = if self.rarely(5) { self.source.next() >> self.source.below(64) } else { 1 };
        let minor = if self.rarely(5) { self.source.below(4) as u64 } else { 3 };
        for (at, length, value) in [
            (100, 8, mode),
            (108, 8, uid),
            (116, 8, gid),
            (124, 12, size),
            (136, 12, mtime),
            (329, 8, major),
            (337, 8, minor),
        ] {
            let mut field = vec![0; length];
            self.number(&mut field, value);
            block[at..at + length].copy_from_slice(&field);
        }
        block[156] = kind;
        let magic: &[u8] = if self.rarely(10) {
            self.source.pick(&[b"ustar  \0", b"\0\0\0\0\0\0\0\0", b"ustar\0xx"])
        } else {
            b"ustar\x0000"
        };
        block[257..265].copy_from_slice(magic);
        if self.rarely(40) {
            block[345..349].copy_from_slice(b"pre/");
        }
        block[148..156].fill(b' ');
        let mut sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        if self.rarely(200) {
            sum += 1;
        }
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(block);
    }
}

/// A PAX record, whose length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() > rest.to_string().len() {
        length += 1;
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}
