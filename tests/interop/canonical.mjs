// The bytes that every node agrees on: canonical encoding, tagged hashes, signatures, Merkle roots (docs/wire.md).
// What belongs here: pure functions of bytes. Connections and messages are in client.mjs.
import { createHash, createPrivateKey, createPublicKey, sign as signBytes, verify as verifyBytes } from 'node:crypto'

const MAX_DEPTH = 8
const MAX_ITEMS = 4096
const CHUNK_BYTES = 256 * 1024
const PKCS8_PREFIX = Buffer.from('302e020100300506032b657004220420', 'hex')
const SPKI_PREFIX = Buffer.from('302a300506032b6570032100', 'hex')

/** Encode arrays, int64 (number or bigint), Uint8Array, booleans and ASCII strings in the one way there is. */
export function encode (value) {
  if (typeof value === 'boolean') return Buffer.from([value ? 0xc3 : 0xc2])
  if (typeof value === 'number' || typeof value === 'bigint') return encodeInteger(BigInt(value))
  if (typeof value === 'string') {
    return Buffer.concat([head(value.length, [[32, 0xa0], [2 ** 8, 0xd9], [2 ** 16, 0xda], [2 ** 32, 0xdb]]), Buffer.from(value, 'ascii')])
  }
  if (value instanceof Uint8Array) {
    return Buffer.concat([head(value.length, [[0, 0], [2 ** 8, 0xc4], [2 ** 16, 0xc5], [2 ** 32, 0xc6]]), value])
  }
  if (Array.isArray(value)) {
    return Buffer.concat([head(value.length, [[16, 0x90], [0, 0], [2 ** 16, 0xdc], [2 ** 32, 0xdd]]), ...value.map(encode)])
  }
  throw new TypeError(`no canonical encoding of ${typeof value}`)
}

/** The shortest head: a fix form (first row) or one with 1, 2 or 4 bytes of length. */
function head (length, [fix, one, two, four]) {
  if (length < fix[0]) return Buffer.from([fix[1] + length])
  if (length < one[0]) return Buffer.from([one[1], length])
  if (length < two[0]) return Buffer.from([two[1], length >> 8, length & 0xff])
  const bytes = Buffer.alloc(5)
  bytes[0] = four[1]
  bytes.writeUInt32BE(length, 1)
  return bytes
}

function encodeInteger (value) {
  if (value >= 0n && value < 128n) return Buffer.from([Number(value)])
  if (value < 0n && value >= -32n) return Buffer.from([256 + Number(value)])
  for (const [bits, unsigned, signed] of [[8n, 0xcc, 0xd0], [16n, 0xcd, 0xd1], [32n, 0xce, 0xd2], [64n, 0xcf, 0xd3]]) {
    const fits = value >= 0n ? value < (1n << bits) : value >= -(1n << (bits - 1n))
    if (fits) {
      const digits = BigInt.asUintN(Number(bits), value).toString(16).padStart(Number(bits) / 4, '0')
      return Buffer.concat([Buffer.from([value >= 0n ? unsigned : signed]), Buffer.from(digits, 'hex')])
    }
  }
  throw new RangeError(`${value} is outside int64`)
}

/** Decode one value; throws for everything that `encode` would not have written. */
export function decode (data) {
  const bytes = Buffer.from(data)
  const [value, end] = decodeAt(bytes, 0, MAX_DEPTH)
  if (end !== bytes.length || !encode(value).equals(bytes)) throw new Error('not the canonical encoding of its value')
  return value
}

function decodeAt (bytes, start, depth) {
  const first = bytes.readUInt8(start)
  if (first < 0x80) return [first, start + 1]
  if (first >= 0xe0) return [first - 256, start + 1]
  if (first === 0xc2 || first === 0xc3) return [first === 0xc3, start + 1]
  if (first >= 0xcc && first <= 0xcf) return integerAt(bytes, start + 1, 1 << (first - 0xcc), false)
  if (first >= 0xd0 && first <= 0xd3) return integerAt(bytes, start + 1, 1 << (first - 0xd0), true)
  if (first >= 0x90 && first <= 0x9f) return arrayAt(bytes, start + 1, first - 0x90, depth)
  if (first === 0xdc) return arrayAt(bytes, start + 3, bytes.readUInt16BE(start + 1), depth)
  if (first >= 0xa0 && first <= 0xbf) return textAt(bytes, start + 1, first - 0xa0)
  for (const [base, read] of [[0xc4, at => at], [0xd9, textAt]]) {
    const width = 1 << (first - base)
    if (first >= base && first <= base + 2) {
      const size = bytes.readUIntBE(start + 1, width)
      return base === 0xd9 ? read(bytes, start + 1 + width, size) : [piece(bytes, start + 1 + width, size), start + 1 + width + size]
    }
  }
  throw new Error(`type byte 0x${first.toString(16)} is outside the subset`)
}

function piece (bytes, start, size) {
  if (start + size > bytes.length) throw new Error('cut off')
  return bytes.subarray(start, start + size)
}

function textAt (bytes, start, size) {
  const text = piece(bytes, start, size)
  if (text.some(byte => byte > 127)) throw new Error('a string that is not ASCII')
  return [text.toString('ascii'), start + size]
}

function integerAt (bytes, start, width, isSigned) {
  const digits = BigInt(`0x${piece(bytes, start, width).toString('hex')}`)
  const value = isSigned ? BigInt.asIntN(8 * width, digits) : digits
  return [Number.isSafeInteger(Number(value)) ? Number(value) : value, start + width]
}

function arrayAt (bytes, start, count, depth) {
  if (depth === 0 || count > MAX_ITEMS) throw new Error('nested too deep, or too many items')
  const items = []
  let at = start
  for (let index = 0; index < count; index++) {
    const [item, next] = decodeAt(bytes, at, depth - 1)
    items.push(item)
    at = next
  }
  return [items, at]
}

const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest()

/** SHA-256("bfl1:" tag 0x00 parts). */
export const taggedHash = (tag, ...parts) => sha256(`bfl1:${tag}\0`, ...parts)

/** RFC 6962, section 2.1. */
export const leafHash = leaf => sha256(Buffer.from([0]), leaf)

export function rootOfHashes (hashes) {
  if (hashes.length === 0) return sha256()
  let level = hashes
  while (level.length > 1) {
    const parents = []
    for (let index = 0; index < level.length; index += 2) {
      const isAlone = index + 1 === level.length
      parents.push(isAlone ? level[index] : sha256(Buffer.from([1]), level[index], level[index + 1]))
    }
    level = parents
  }
  return level[0]
}

/** The content id of a blob, from its size and the leaf hashes of its chunks. */
export const blobId = (size, hashes) => taggedHash('blob', encode([size, CHUNK_BYTES, rootOfHashes(hashes)]))

export const blockId = header => taggedHash('block', encode(header))
export const transactionId = payload => taggedHash('txid', encode(payload))
export const transactionsRoot = transactions => rootOfHashes(transactions.map(item => leafHash(encode(item))))

/** What is signed: domain, kind and chain come first, so that no signature serves twice. */
const signedMessage = (kind, chain, payload) => Buffer.concat([Buffer.from(`bfl1:${kind}\0`), chain, encode(payload)])

/** An Ed25519 key from its seed: `account` is the public key. */
export function keyOf (seed) {
  const secret = createPrivateKey({ key: Buffer.concat([PKCS8_PREFIX, seed]), format: 'der', type: 'pkcs8' })
  const account = createPublicKey(secret).export({ format: 'der', type: 'spki' }).subarray(-32)
  return { account, sign: (kind, chain, payload) => signBytes(null, signedMessage(kind, chain, payload), secret) }
}

export function isSigned (account, kind, chain, payload, signature) {
  const key = createPublicKey({ key: Buffer.concat([SPKI_PREFIX, account]), format: 'der', type: 'spki' })
  return verifyBytes(null, signedMessage(kind, chain, payload), key, signature)
}
