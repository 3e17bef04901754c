// opencode-helicone plugin, written by `opencode-helicone install-plugin`; the next install replaces this file.
const COMMAND = ["opencode-helicone", "hook"]

/* Hands each finished turn of OpenCode to a resident Python process, the hook, as one JSON line on its stdin.

     OpenCode instance ── loads ──▶ Place   one per directory: which sessions changed, and since which message
     Place ── shares ─────────────▶ Hook    one per process and spool directory: a child, one line in flight

   Events only leave marks. A snapshot is read from OpenCode when the hook can take it, never before, so that a hook
   which does not read costs no memory and the newest state wins. Nothing here prints, throws, redacts or hashes. */

import { spawn } from "node:child_process"
import fs from "node:fs"
import os from "node:os"
import path from "node:path"

const LINE_BYTES_MAX = 8 * 1024 * 1024 // a longer snapshot is sent as several lines, cut between turns
const TURN_BYTES_MAX = 16 * 1024 * 1024 // a longer turn is refused
const SLICE_BYTES = 64 * 1024 // of one write: bounds what the runtime holds for a hook that stopped reading
const DISPOSE_MS_MAX = 2_000
const RESTART_PAUSES_MS = [1_000, 10_000, 60_000] // after the first, second, third death in a row; then one an hour
const HOUR_MS = 3_600_000
const STEADY_MS = 600_000 // a hook that lived this long ends a row of deaths
const TOUCHED_MAX = 4_096 // more marks than this on one session: send it whole
const DELETED_MAX = 1_000
const LOG_BYTES_MAX = 1024 * 1024
const EXIT_MS_MAX = 100 // how long a broken pipe waits for the exit code that explains it
const DEPTH_MAX = 100 // of subagents below subagents
// File systems on which no spool may lie, as in app/place.py.
const NETWORK = [
  ...["nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "ceph", "coda", "ncpfs", "glusterfs", "lustre", "gpfs"],
  ...["beegfs", "orangefs", "pvfs2", "ocfs2", "gfs2"],
]
const SHARED_WITH_HOST = /^(9p|drvfs|virtiofs|vboxsf|vmhgfs|prl_fs|fuse(blk)?(\..*)?)$/

// One registry for the whole process: several copies of this file (global, project, config) share the first one's code.
const REGISTRY = Symbol.for("opencode-helicone/1")
const places = new Map() // directory → Place
const hooks = new Map() // spool directory → Hook

// ---- settings -------------------------------------------------------------------------------------------------------

const isOff = (value) => ["false", "0", "no", "off", "f", "n"].includes(String(value).trim().toLowerCase())

function isEnabled(options) {
  const variable = process.env.OPENCODE_HELICONE_ENABLE
  return !isOff(variable?.trim() ? variable : options.enable)
}

/** The spool directory that was asked for, absolute; null when nobody asked. */
function chosenSpool(options, directory) {
  const value = process.env.OPENCODE_HELICONE_SPOOL_DIRECTORY || options.spoolDirectory
  if (typeof value !== "string" || !value) return null
  return path.resolve(directory, value.replace(/^~(?=\/|$)/, os.homedir()))
}

/** As app/place.py, and platformdirs.user_data_dir("opencode-helicone", appauthor=False): the hook must arrive there. */
function defaultSpool(mountinfo = "/proc/self/mountinfo") {
  const xdg = process.env.XDG_DATA_HOME ?? ""
  const platform = process.platform === "darwin" ? "Library/Application Support" : ".local/share"
  const usual = path.join(path.isAbsolute(xdg) ? xdg : path.join(os.homedir(), platform), "opencode-helicone")
  try {
    const isElsewhere = isShared(realPath(usual), fs.readFileSync(mountinfo, "utf8"))
    if (isElsewhere) return `/var/tmp/opencode-helicone-${process.geteuid()}`
  } catch {} // no such file on this system
  return usual
}

/** Whether the path's file system is one that other machines write to, too. */
function isShared(file, mountinfo) {
  let [found, type] = ["", ""]
  for (const line of mountinfo.split("\n")) {
    const [before, after] = line.split(" - ")
    const point = before.split(" ")[4]?.replace(/\\([0-7]{3})/g, (_, code) => String.fromCharCode(parseInt(code, 8)))
    if (!after || point.length < found.length || !`${file}/`.startsWith(point.replace(/\/?$/, "/"))) continue
    ;[found, type] = [point, after.split(" ")[0]]
  }
  return NETWORK.includes(type) || (SHARED_WITH_HOST.test(type) && found !== "/")
}

/** The path without symbolic links, as far as it exists. */
function realPath(file) {
  try {
    return fs.realpathSync(file)
  } catch {
    return path.dirname(file) === file ? file : path.join(realPath(path.dirname(file)), path.basename(file))
  }
}

/** The absolute path of `name`, or null. Relative PATH entries are passed over: they would run the project's files. */
function executable(name) {
  if (path.isAbsolute(name)) return name
  for (const folder of (process.env.PATH ?? "").split(path.delimiter)) {
    if (!path.isAbsolute(folder)) continue
    const file = path.join(folder, name)
    try {
      fs.accessSync(file, fs.constants.X_OK)
      if (fs.statSync(file).isFile()) return file
    } catch {} // not in this folder
  }
  return null
}

/** The hook's environment: ours, without what would make its Python run the project's files. */
function environment(spool) {
  const env = { ...process.env, PWD: spool }
  for (const name of Object.keys(env)) if (/^(PYTHON|__PYVENV)/.test(name)) delete env[name]
  // Its working directory is the spool: a relative value would mean something else there.
  if (env.OPENCODE_HELICONE_SPOOL_DIRECTORY) env.OPENCODE_HELICONE_SPOOL_DIRECTORY = spool
  return env
}

// ---- the hook -------------------------------------------------------------------------------------------------------

function hookOf(spool) {
  if (!hooks.has(spool)) {
    hooks.set(spool, {
      spool,
      child: null,
      life: 0, // counts deaths: what was sent to an earlier life must be sent again
      startedMs: 0,
      deaths: 0, // in a row
      notBeforeMs: 0,
      pumping: null, // promise of the pump's end while it runs
      abandon: null, // ends the wait for the write in flight
      movedMs: 0, // when the hook last took something, or was last offered something after a pause
      lines: [], // not yet sent, beside what is made when it is sent
      reportedMs: 0,
    })
  }
  return hooks.get(spool)
}

/** Starts a process that outlives us: {pid, write}. `write` settles when the operating system has the bytes, or cannot
    take them. `ended` is told the reason when it did not start or ended. The command line and the TUI run in Bun, where
    only Bun's own flush() waits for the system (node's callback comes early); OpenCode's desktop program runs in Node. */
function launch(file, options, ended) {
  const exited = (code, signal) => ended(`hook ended: ${signal ?? `exit code ${code}`}`)
  if (globalThis.Bun) {
    const onExit = (_, code, signal) => exited(code, signal)
    const pipes = { stdin: "pipe", stdout: "ignore", stderr: "ignore" }
    const child = Bun.spawn([file, ...COMMAND.slice(1)], { ...options, ...pipes, onExit })
    child.unref()
    return { pid: child.pid, write: async (bytes) => Promise.all([child.stdin.write(bytes), child.stdin.flush()]) }
  }
  const child = spawn(file, COMMAND.slice(1), { ...options, stdio: ["pipe", "ignore", "ignore"] })
  child.on("error", (error) => ended(`hook did not start: ${error.code}`))
  child.on("exit", exited)
  child.stdin?.on("error", () => {}) // told by the write's callback too
  child.unref()
  const write = (bytes) =>
    new Promise((resolve, reject) => child.stdin.write(bytes, (error) => (error ? reject(error) : resolve())))
  return { pid: child.pid, write }
}

/** True when the hook can be written to. Starts it unless it died too recently. */
function running(hook) {
  if (hook.child) return hook.child.pid !== undefined
  if (Date.now() < hook.notBeforeMs) return false
  const file = executable(COMMAND[0])
  try {
    fs.mkdirSync(hook.spool, { recursive: true, mode: 0o700 })
    if (!file) throw new Error("not found on PATH")
    const options = { cwd: hook.spool, env: environment(hook.spool), detached: true }
    const child = launch(file, options, (reason) => lost(hook, child, reason))
    hook.child = child
    hook.startedMs = Date.now()
  } catch (error) {
    lost(hook, null, `hook did not start: ${error.code ?? error.message}`)
  }
  return hook.child?.pid !== undefined
}

/** The child is of no use any more (died, never started, closed its input). Plans the next start. */
function lost(hook, child, reason) {
  if (hook.child !== child) return // already told
  const now = Date.now()
  if (child && now - hook.startedMs > STEADY_MS) hook.deaths = 0
  const pauseMs = RESTART_PAUSES_MS[hook.deaths] ?? HOUR_MS
  hook.child = null
  hook.life += 1
  hook.deaths += 1
  hook.notBeforeMs = now + pauseMs
  hook.abandon?.()
  for (const place of placesOf(hook)) for (const root of place.roots.values()) root.due = root.active
  setTimeout(() => pump(hook), pauseMs + 10).unref()
  // One that was only told that nothing is wanted ends by itself.
  if (placesOf(hook).some((place) => isEnabled(place.options))) report(hook, reason)
}

/** One dated line in the log and in OpenCode's, at most one an hour whichever process writes it. */
function report(hook, reason) {
  const now = Date.now()
  if (now - hook.reportedMs < HOUR_MS) return
  hook.reportedMs = now
  const message = `${reason}; command ${JSON.stringify(COMMAND)}`
  try {
    const folder = path.join(hook.spool, "logs")
    const file = path.join(folder, "plugin.log")
    fs.mkdirSync(folder, { recursive: true, mode: 0o700 })
    const before = fs.lstatSync(file, { throwIfNoEntry: false })
    if (before && now - before.mtimeMs < HOUR_MS) return
    const { O_WRONLY, O_CREAT, O_APPEND, O_TRUNC, O_NOFOLLOW } = fs.constants
    const mode = before?.size > LOG_BYTES_MAX ? O_TRUNC : O_APPEND
    const fd = fs.openSync(file, O_WRONLY | O_CREAT | O_NOFOLLOW | mode, 0o600)
    fs.writeSync(fd, `${new Date(now).toISOString()} ${message}\n`)
    fs.closeSync(fd)
  } catch {} // a spool that cannot be written: OpenCode's log still says it
  for (const place of placesOf(hook)) {
    const body = { service: "opencode-helicone", level: "error", message }
    const sent = clientOf(place)?.app?.log({ body })
    if (sent) return void sent.catch(() => {})
  }
}

/** Hands bytes over slice by slice; true when the operating system has them all, false when the hook is lost. */
async function write(hook, bytes) {
  const { child } = hook
  if (!child) return false // lost while the bytes were made
  hook.movedMs = Date.now()
  for (let at = 0; at < bytes.length; at += SLICE_BYTES) {
    const gone = new Promise((resolve) => (hook.abandon = () => resolve(false)))
    const slice = child.write(bytes.subarray(at, at + SLICE_BYTES)).then(() => true)
    const taken = await Promise.race([slice, gone]).catch(() => false)
    hook.abandon = null
    if (!taken) {
      await new Promise((resolve) => setTimeout(resolve, EXIT_MS_MAX).unref())
      lost(hook, child, "hook closed its input")
    }
    if (hook.child !== child) return false
    hook.movedMs = Date.now()
  }
  return true
}

// ---- the pump: takes work while the hook takes lines ----------------------------------------------------------------

const placesOf = (hook) => [...places.values()].filter((place) => place.hook === hook)

/** The newest instance's client, null when the directory has no live instance: asking OpenCode would make one. */
const clientOf = (place) => [...place.loads].at(-1)?.client ?? null

/** The next thing to send, or null: deletions, then sessions to announce, then sessions to send. */
function nextWork(hook) {
  if (hook.lines.length) return { kind: "line" }
  const live = placesOf(hook).filter(clientOf)
  for (const kind of ["open", "snapshot"]) {
    for (const place of live) {
      for (const root of place.roots.values()) {
        if (root.active && (kind === "open" ? root.opened !== hook.life : root.due)) return { kind, place, root }
      }
    }
  }
  return null
}

async function perform(hook, { kind, place, root }) {
  if (kind === "line") {
    if (await write(hook, encode(hook.lines[0]))) hook.lines.shift()
    return
  }
  if (!(await verify(place, root))) return
  const { life } = hook
  if (kind === "open") {
    const { directory, options, spool } = place
    const line = { v: 1, type: "open", session: root.id, directory, options, spool }
    if (await write(hook, encode(line))) root.opened = life
    return
  }
  const { line, next } = await snapshot(place, root, root.sent !== life)
  if (!line) return
  if (await write(hook, line)) Object.assign(root, { sent: life }, next && { next, due: true })
  else root.due = true // for the hook's next life
}

/** Sends until nothing is left to send or the hook is gone; resolves then. One runs at a time for a hook. */
function pump(hook) {
  hook.pumping ??= (async () => {
    await null // leave the event that called us first
    for (let work = nextWork(hook); work && running(hook); work = nextWork(hook)) {
      try {
        await perform(hook, work)
      } catch (error) {
        setAside(hook, work, error)
      }
    }
    hook.pumping = null // in the same turn as the look that found nothing: no event falls between
  })()
  return hook.pumping
}

/** A session that could not be read waits, to be sent whole, for its next event or its directory's next instance. */
function setAside(hook, { place, root }, error) {
  if (!root) return void hook.lines.shift() // a line that cannot even be written as JSON
  Object.assign(root, { due: !clientOf(place), active: root.verified, whole: true })
  if (clientOf(place)) report(hook, `session not read: ${error?.name}`)
}

// ---- snapshots ------------------------------------------------------------------------------------------------------

const encode = (value) => Buffer.from(JSON.stringify(value) + "\n")

/** False when the session turns out to be a subagent's, or is gone. */
async function verify(place, root) {
  if (root.verified) return true
  const info = await ask(place, (client) => client.session.get({ path: { id: root.id } }))
  if (info && !info.parentID) return (root.verified = true)
  place.roots.delete(root.id)
  if (info) place.parents.set(root.id, info.parentID)
  return false
}

/** The data of OpenCode's answer, null when there is no such thing. */
async function ask(place, request) {
  const client = clientOf(place)
  if (!client) throw new Error("the directory has no instance any more")
  const { data, response } = await request(client)
  if (!data && response?.status !== 404) throw new Error(`OpenCode answered ${response?.status}`)
  return data ?? null
}

/** {info, messages in order}, null when the session is gone. */
async function readSession(place, id) {
  const info = await ask(place, (client) => client.session.get({ path: { id } }))
  const messages = info && (await ask(place, (client) => client.session.messages({ path: { id } })))
  if (!messages) return null
  const order = (a, b) => a.info.time.created - b.info.time.created || (a.info.id < b.info.id ? -1 : 1)
  return { info, messages: messages.sort(order) }
}

const turnOf = ({ info }) => (info.role === "user" ? info.id : (info.parentID ?? info.id))

/** Sessions that its tools started: OpenCode's own `task`, or one of another plugin. */
const subagentsOf = ({ parts }) =>
  parts.map((part) => part.state?.metadata?.sessionId).filter((id) => typeof id === "string" && id)

/** Where a session may be cut: `at` lists the positions from which on no message belongs to a turn, or names a
    subagent, that appears before; `first` tells where each turn and subagent appears first. */
function cuts(messages) {
  const first = new Map()
  const reach = messages.map((message, index) => {
    const keys = [turnOf(message), ...subagentsOf(message)]
    for (const key of keys) if (!first.has(key)) first.set(key, index)
    return Math.min(...keys.map((key) => first.get(key)))
  })
  const at = []
  for (let index = messages.length - 1, low = index; index >= 0; index--) {
    low = Math.min(low, reach[index])
    if (low === index) at.unshift(index)
  }
  return { at, first }
}

/** The last cut at or before everything that was touched; the last cut when nothing was (a renamed session). */
function startOf({ at, first }, messages, { touched, subagents, next }) {
  const marks = [...subagents].map((id) => first.get(id) ?? Infinity)
  messages.forEach(({ info }, index) => {
    if (touched.has(info.id) || info.id === next) marks.push(index)
  })
  const earliest = Math.min(...marks, Infinity)
  return at.findLast((cut) => cut <= earliest) ?? 0
}

/** The JSON texts of the subagents named by these messages, and by theirs, each once. */
async function readSubagents(place, messages, seen) {
  const texts = []
  for (const id of messages.flatMap(subagentsOf)) {
    if (seen.has(id)) continue
    seen.add(id)
    const session = await readSession(place, id)
    if (!session) continue
    texts.push(JSON.stringify({ ...session, first_index: 0 }))
    texts.push(...(await readSubagents(place, session.messages, seen)))
  }
  return texts
}

/** The next line for a session: {line: bytes, next: id of the message to go on from, null at the end}; {} when gone. */
async function snapshot(place, root, isFirst) {
  const marks = takeMarks(root)
  const session = await readSession(place, root.id)
  if (!session) {
    place.roots.delete(root.id)
    return {}
  }
  const { info, messages } = session
  const cut = cuts(messages)
  const start = isFirst || marks.whole ? 0 : startOf(cut, messages, marks)
  const taken = await takeTurns(place, root.id, messages, [...cut.at.filter((at) => at >= start), messages.length])
  const next = messages[taken.end]?.info.id ?? null
  if (taken.refused) return { line: encode(taken.refused), next }
  const { directory, options } = place
  const head = JSON.stringify({ v: 1, type: "snapshot", directory, options, root: root.id }).slice(0, -1)
  const own = `{"info":${JSON.stringify(info)},"messages":[${taken.messages.join(",")}],"first_index":${start}}`
  return { line: Buffer.from(`${head},"sessions":[${[own, ...taken.subagents].join(",")}]}\n`), next }
}

/** As many turns as fit in a line, from the first of `bounds` on (at least one): JSON texts of messages and subagents. */
async function takeTurns(place, session, messages, bounds) {
  const taken = { messages: [], subagents: [], end: bounds[0], refused: null }
  const seen = new Set([session])
  let bytes = 0
  for (let index = 1; index < bounds.length; index++) {
    const turn = messages.slice(bounds[index - 1], bounds[index])
    const texts = turn.map((message) => JSON.stringify(message))
    const subagents = await readSubagents(place, turn, seen)
    const size = [...texts, ...subagents].reduce((sum, text) => sum + Buffer.byteLength(text), 0)
    if (index > 1 && bytes + size > LINE_BYTES_MAX) break
    taken.end = bounds[index]
    if (size > TURN_BYTES_MAX) {
      taken.refused = { v: 1, type: "refused", session, reason: "too large", bytes: size }
      break
    }
    bytes += size
    taken.messages.push(...texts)
    taken.subagents.push(...subagents)
  }
  return taken
}

// ---- marks: what OpenCode's events leave behind ---------------------------------------------------------------------

function newRoot(id) {
  return {
    id,
    verified: false, // known to have no parent
    active: false, // was busy, or had something to send, in this process
    busy: false,
    idled: false,
    opened: -1, // the hook's life that knows of it
    sent: -1, // the hook's life that has had it whole
    due: false,
    facts: null,
    ...noMarks(),
  }
}

/** What changed since the last snapshot was read: message ids, subagents, the session's own facts. */
const noMarks = () => ({ touched: new Set(), subagents: new Set(), whole: false, renamed: false, next: null })

function takeMarks(root) {
  const { touched, subagents, whole, next } = root
  Object.assign(root, noMarks(), { due: false })
  return { touched, subagents, whole, next }
}

const isChanged = (root) => root.touched.size > 0 || root.subagents.size > 0 || root.whole || root.renamed

/** The root with this id, made if need be; null for a subagent's session. */
function rootOf(place, id) {
  if (!id || place.parents.has(id)) return null
  if (!place.roots.has(id)) place.roots.set(id, newRoot(id))
  return place.roots.get(id)
}

function want(place, root, mark) {
  Object.assign(root, mark, { active: true })
  pump(place.hook)
}

/** A change inside a subagent's session is a change of the turn that named its outermost ancestor below the root. */
function touch(place, session, message) {
  let id = session
  let subagent = null
  for (let depth = 0; place.parents.has(id) && depth < DEPTH_MAX; depth++) [subagent, id] = [id, place.parents.get(id)]
  const root = rootOf(place, id)
  if (!root) return null
  if (subagent) root.subagents.add(subagent)
  else if (root.touched.size < TOUCHED_MAX) root.touched.add(message)
  else root.whole = true
  return subagent ? null : root
}

function learn(place, { info }) {
  if (info.parentID) {
    place.parents.set(info.id, info.parentID)
    place.roots.delete(info.id)
    return
  }
  const root = rootOf(place, info.id)
  const facts = { title: info.title, archived: info.time?.archived, revert: JSON.stringify(info.revert) }
  const before = root.facts ?? facts
  root.verified = true
  root.facts = facts
  if (facts.revert !== before.revert) root.whole = true
  if (facts.title !== before.title || facts.archived !== before.archived) root.renamed = true
}

function forget(place, session) {
  place.roots.delete(session)
  place.parents.delete(session)
  const { hook, directory, options, spool } = place
  // Without a spool there is no undelivered job that the deletion could concern.
  if (!hook.child && !fs.existsSync(hook.spool)) return
  if (hook.lines.length < DELETED_MAX) hook.lines.push({ v: 1, type: "deleted", session, directory, options, spool })
  pump(hook)
}

function removed(place, { sessionID, messageID }) {
  const root = touch(place, sessionID, messageID)
  if (root) root.whole = true
}

const EVENTS = {
  __proto__: null,
  "session.created": learn,
  "session.updated": learn,
  "session.deleted": (place, { sessionID, info }) => forget(place, sessionID ?? info.id),
  "session.status": (place, { sessionID, status }) => {
    const root = status.type === "idle" ? null : rootOf(place, sessionID)
    if (root) want(place, root, { busy: true })
  },
  "session.idle": (place, { sessionID }) => {
    const root = rootOf(place, sessionID)
    if (root) want(place, root, { busy: false, idled: true, due: true })
  },
  "session.error": (place, { sessionID }) => {
    const root = rootOf(place, sessionID)
    if (root) want(place, root, { due: true })
  },
  "message.updated": (place, { sessionID, info }) => {
    // Each new turn tells the one before it its diffs anew, which are no part of a transcript.
    if (info.role === "user" && info.summary) return
    const root = touch(place, sessionID ?? info.sessionID, info.id)
    const isFinished = info.role === "assistant" && (info.time?.completed || info.error)
    if (root?.idled && !root.busy && isFinished) want(place, root, { due: true }) // an abort or error, told after idle
  },
  "message.part.updated": (place, { part }) => void touch(place, part.sessionID, part.messageID),
  "message.removed": removed,
  "message.part.removed": removed,
}

// ---- what OpenCode calls --------------------------------------------------------------------------------------------

/** Called for each load of each instance. A directory's loads (two copies of the file, an instance made anew while the
    old one is disposed of) share one Place; the newest client speaks, the newest load that has options decides. */
function join(ctx, options) {
  const { directory } = ctx
  if (!places.has(directory)) places.set(directory, { directory, loads: new Set(), roots: new Map(), parents: new Map() })
  const place = places.get(directory)
  const load = { client: ctx.client, options: options ?? {} }
  place.loads.add(load)
  configure(place)
  return {
    event(input) {
      try {
        if (input.event.type === "message.part.delta") return
        see(place, input.event)
      } catch (error) {
        report(place.hook, `event not understood: ${error?.name}`)
      }
    },
    async dispose() {
      try {
        await finish(place)
      } catch (error) {
        report(place.hook, `dispose failed: ${error?.name}`)
      } finally {
        place.loads.delete(load)
        if (place.loads.size) configure(place)
      }
    },
  }
}

function configure(place) {
  place.options = [...place.loads].findLast(({ options }) => Object.keys(options).length)?.options ?? {}
  place.spool = chosenSpool(place.options, place.directory)
  place.hook = hookOf(place.spool ?? defaultSpool())
  const isRetired = !isEnabled(place.options)
  if (isRetired && !place.isRetired) retire(place)
  place.isRetired = isRetired
}

/** `enable` is false: nothing starts where nothing ever ran. Elsewhere a worker may still be at it, and has to stop:
    a hook notes it in the ledger, and ends. */
function retire({ directory, options, spool, hook }) {
  if (!fs.existsSync(path.join(hook.spool, "ledger.db"))) return
  hook.lines.push({ v: 1, type: "open", session: "", directory, options, spool })
  pump(hook)
}

function see(place, { id, type, properties }) {
  const handle = EVENTS[type]
  if (!handle || !isEnabled(place.options)) return
  if (id && id === place.lastEventId) return // the second of two loads
  place.lastEventId = id
  handle(place, properties)
}

/** Sends what changed since the last snapshots; resolves when it is handed over, or when the hook keeps us waiting. */
async function finish(place) {
  const { hook } = place
  for (const root of place.roots.values()) if (root.active && isChanged(root)) root.due = true
  // A hook that has taken nothing for so long will not begin now.
  const patienceMs = hook.abandon ? hook.movedMs + DISPOSE_MS_MAX - Date.now() : DISPOSE_MS_MAX
  if (patienceMs <= 0) return
  let timer
  const timeout = new Promise((resolve) => (timer = setTimeout(resolve, patienceMs)))
  await Promise.race([pump(hook), timeout])
  clearTimeout(timer)
}

globalThis[REGISTRY] ??= { join }

export default {
  id: "opencode-helicone",
  server: async (ctx, options) => globalThis[REGISTRY].join(ctx, options),
}
