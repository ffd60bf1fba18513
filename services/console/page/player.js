"use strict";
// Watches one camera: asks for a grant, takes the pieces of its stream, checks their chain, and paints what is new enough.
// What it shows is live or says that it is not: an old picture is covered, and a revoked one is wiped.
const HEAD = 48, VERSION = 1, INIT = 0, KEY = 1;
// A picture older than this is not painted; without a new one for so long, what is there is covered.
const LATE_MS = 1000, STALE_MS = 1500;
// An emergency may be younger than what the sessions have heard: for so long one that they do not know may still come.
const APPEARS_MS = 10_000;
const EXTEND_MS = 4 * 60_000, RETRY_MS = 500, RETRY_AT_MOST_MS = 5000, TICK_MS = 200, LOOK_MS = 4000;
const REVOKED = 4403;
const CAUSES = {
    EMERGENCY_CLEARED: "the emergency was cleared",
    HOLDER_CHANGED: "another officer wears the camera now",
    NOT_INVOLVED: "the emergency is not about this officer any more",
    EXPIRED: "your permission has expired",
    REVOKED: "your permission was taken back",
    SESSION_ENDED: "the camera has ended its stream",
    TOKEN_INVALID: "your permission is not valid any more",
    CALLER_NOT_ALLOWED: "you may not watch this camera",
    OTHER_AGENCY: "this camera belongs to another agency",
    NOT_FOUND: "there is no such emergency, or it has no such camera",
    SECOND_FACTOR_REQUIRED: "your sign-in has no second factor",
    INVALID_FIELD: "the emergency or the camera is not named correctly",
};
// Refusals after which it is of use to ask again.
const PASSING = new Set(["NO_STREAM", "SESSION_MOVED", "TRY_AGAIN", "GOING_AWAY", "INTERNAL"]);
const byId = (id) => document.getElementById(id);
const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
/** The boxes between two places; stops at one that does not fit. */
function* boxes(view, start, end) {
    while (start + 8 <= end) {
        const size = view.getUint32(start);
        if (size < 8 || start + size > end)
            return;
        const type = String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + start + 4, 4));
        yield { type, start: start + 8, end: start + size };
        start += size;
    }
}
function find(view, start, end, path) {
    const [first, ...rest] = path;
    for (const box of boxes(view, start, end)) {
        if (box.type !== first)
            continue;
        // An stsd has 8 bytes before its entries, a visual sample entry 78 before its boxes.
        const skip = box.type === "stsd" ? 8 : box.type.startsWith("avc") && box.type !== "avcC" ? 78 : 0;
        return rest.length ? find(view, box.start + skip, box.end, rest) : box;
    }
    return undefined;
}
/** The decoder's configuration record out of an init. */
function decoderRecord(init) {
    const view = new DataView(init.buffer, init.byteOffset, init.byteLength);
    for (const entry of ["avc1", "avc3"]) {
        const box = find(view, 0, init.byteLength, ["moov", "trak", "mdia", "minf", "stbl", "stsd", entry, "avcC"]);
        if (box)
            return init.subarray(box.start, box.end);
    }
    return undefined;
}
/** The coded pictures of a fragment, one access unit as the camera made it. */
function mediaData(fragment) {
    const view = new DataView(fragment.buffer, fragment.byteOffset, fragment.byteLength);
    const box = find(view, 0, fragment.byteLength, ["mdat"]);
    return box && fragment.subarray(box.start, box.end);
}
// --- the chain ---------------------------------------------------------------------------------------------------------
/** Hashes what comes, in order, and compares it with what the relay says that it has kept. */
class Chain {
    pieces = 0;
    fits = true;
    /** The chain's value after the newest piece, and the number of that piece. */
    head = "";
    newest = -1;
    queue = Promise.resolve();
    add(piece) {
        this.queue = this.queue.then(() => this.check(piece)).catch(() => { this.fits = false; });
    }
    /** Resolves when all that has come is hashed. */
    settled() { return this.queue; }
    async check(piece) {
        const both = new Uint8Array(piece.previous.length + piece.data.length);
        both.set(piece.previous);
        both.set(piece.data, piece.previous.length);
        // A piece hangs on the one before; after one that was skipped, and in a new segment, it begins anew.
        if (piece.n === this.newest + 1 && piece.n !== 0 && hex(piece.previous) !== this.head)
            this.fits = false;
        this.head = hex(new Uint8Array(await crypto.subtle.digest("SHA-256", both)));
        this.newest = piece.n;
        this.pieces += 1;
        heads.push([piece.n, this.head]);
        if (heads.length > 10_000)
            heads.shift();
    }
}
/** The newest hashes, with their pieces' numbers, and the grants that were given: tests compare them with what is kept. */
const heads = [];
const grants = [];
// --- the picture -------------------------------------------------------------------------------------------------------
class Picture {
    canvas = byId("picture");
    context = this.canvas.getContext("2d", { alpha: false, desynchronized: true });
    cover = byId("cover");
    decoder;
    received = new Map();
    clock = 0;
    waitsForKey = true;
    painted = 0;
    /** Called when the decoder has given up: only a new beginning helps. */
    onbroken = () => undefined;
    /** When a picture was painted last, and how old it was. */
    lastAt = 0;
    delayMs = 0;
    /** Our clock against the relay's, in ms: what must be added to ours. */
    offset = 0;
    configure(codec, init) {
        const description = decoderRecord(init);
        this.close();
        this.decoder = new VideoDecoder({ output: (frame) => this.paint(frame), error: () => { this.close(); this.onbroken(); } });
        this.decoder.configure({ codec, optimizeForLatency: true, ...(description && { description }) });
        this.waitsForKey = true;
    }
    decode(piece) {
        if (piece.kind === KEY)
            this.waitsForKey = false;
        const data = mediaData(piece.data);
        if (!this.decoder || this.waitsForKey || !data)
            return;
        this.clock += 1;
        this.received.set(this.clock, piece.receivedMs);
        this.decoder.decode(new EncodedVideoChunk({ type: piece.kind === KEY ? "key" : "delta", timestamp: this.clock, data }));
    }
    /** Pieces are missing: what comes next cannot be decoded before a keyframe. */
    skip() { this.waitsForKey = true; }
    paint(frame) {
        const receivedMs = this.received.get(frame.timestamp) ?? 0;
        for (const at of this.received.keys())
            if (at <= frame.timestamp)
                this.received.delete(at);
        this.delayMs = Math.max(0, Date.now() + this.offset - receivedMs);
        // An old picture is no picture: somebody would act on it.
        if (this.delayMs <= LATE_MS && this.context) {
            if (this.canvas.width !== frame.displayWidth)
                this.canvas.width = frame.displayWidth;
            if (this.canvas.height !== frame.displayHeight)
                this.canvas.height = frame.displayHeight;
            this.context.drawImage(frame, 0, 0);
            this.painted += 1;
            this.lastAt = performance.now();
            this.cover.hidden = true;
            this.canvas.dispatchEvent(new CustomEvent("painted", { detail: this.painted }));
        }
        frame.close();
    }
    /** Cover what is there with words. */
    say(text) {
        this.cover.textContent = text;
        this.cover.hidden = false;
    }
    /** Leave no picture behind. */
    wipe(text) {
        this.close();
        this.context?.fillRect(0, 0, this.canvas.width, this.canvas.height);
        this.say(text);
    }
    close() {
        if (this.decoder && this.decoder.state !== "closed")
            this.decoder.close();
        this.decoder = undefined;
        this.received.clear();
    }
}
// --- one person watching one camera ------------------------------------------------------------------------------------
class Player {
    token;
    emergency;
    camera;
    picture = new Picture();
    chain = new Chain();
    socket;
    codec = "";
    audio = false;
    muted = false;
    got = 0;
    newest = -1;
    over = false;
    lastMedia;
    retryMs = RETRY_MS;
    extending = 0;
    ticking;
    looking;
    relay = "";
    since = performance.now();
    constructor(token, emergency, camera) {
        this.token = token;
        this.emergency = emergency;
        this.camera = camera;
        this.ticking = window.setInterval(() => this.tick(), TICK_MS);
        this.looking = window.setInterval(() => void this.look(), LOOK_MS);
        this.picture.onbroken = () => this.socket?.close();
        show("connecting", "Connecting.");
        this.picture.wipe("Connecting");
        void this.connect();
    }
    async connect() {
        const answer = await ask(this.token, "/api/watch", { emergency_id: this.emergency, camera_id: this.camera });
        if (this.over)
            return;
        if ("reason" in answer) {
            const mayAppear = answer.reason === "NOT_FOUND" && performance.now() - this.since < APPEARS_MS;
            if (!PASSING.has(answer.reason) && !mayAppear)
                this.end(CAUSES[answer.reason] ?? answer.message);
            else
                this.again(mayAppear || answer.reason === "NO_STREAM" ? "Waiting for the camera." : "Connecting again.");
            return;
        }
        grants.push(answer.grant.grant_id);
        this.relay = answer.session.relay_id;
        byId("who").textContent = `${answer.session.officer_id}, camera ${answer.session.camera_id}`;
        window.clearInterval(this.extending);
        this.extending = window.setInterval(() => void ask(this.token, "/api/extend", { grant_id: answer.grant.grant_id }), EXTEND_MS);
        const socket = this.socket = new WebSocket(`${answer.view_url}/v1/view`);
        socket.binaryType = "arraybuffer";
        this.got = 0;
        this.muted = false; // until the relay says otherwise
        socket.onopen = () => socket.send(JSON.stringify({ token: answer.token }));
        socket.onmessage = (event) => { if (!this.over && socket === this.socket)
            this.take(event.data); };
        socket.onclose = (event) => { if (!this.over && socket === this.socket)
            this.closed(event); };
    }
    take(message) {
        if (typeof message === "string") {
            const told = JSON.parse(message);
            if (told.init) {
                this.codec = told.init.codec;
                this.picture.offset = (told.now_ms ?? Date.now()) - Date.now();
                this.audio = told.init.audio;
            }
            this.muted = told.muted ?? this.muted;
            byId("sound").textContent = this.muted ? "microphone off" : this.audio ? "with sound" : "no sound";
            byId("sound").dataset["muted"] = this.muted ? "yes" : "no";
            return;
        }
        const piece = parse(message);
        if (!piece) {
            this.socket?.close();
            return;
        }
        this.got += message.byteLength;
        this.socket?.send(JSON.stringify({ got: this.got }));
        this.lastMedia = new Date();
        this.retryMs = RETRY_MS;
        if (piece.kind === INIT)
            this.picture.configure(this.codec, piece.data);
        else {
            if (piece.n !== this.newest + 1)
                this.picture.skip();
            this.picture.decode(piece);
        }
        this.newest = piece.n;
        this.chain.add(piece);
    }
    closed(event) {
        if (event.code === REVOKED && event.reason !== "RELAY_LOST")
            this.end(CAUSES[event.reason] ?? "you may not watch any more");
        else
            this.again("Connecting again.");
    }
    again(text) {
        if (this.lastMedia === undefined)
            show("connecting", text);
        window.setTimeout(() => { if (!this.over)
            void this.connect(); }, this.retryMs);
        this.retryMs = Math.min(2 * this.retryMs, RETRY_AT_MOST_MS);
    }
    /** Every few seconds, when nothing comes: has the stream gone to another relay? */
    async look() {
        const silent = !this.lastMedia || Date.now() - this.lastMedia.getTime() > LOOK_MS;
        if (this.over || !silent || this.socket?.readyState !== WebSocket.OPEN)
            return;
        const answer = await ask(this.token, "/api/sessions", { emergency_id: this.emergency });
        const now = "reason" in answer ? undefined : answer.sessions?.find((session) => session.camera_id === this.camera);
        if (now && now.relay_id !== this.relay)
            this.socket.close();
    }
    /** Several times a second: is what is shown still true? */
    tick() {
        const { chain, picture } = this;
        byId("proof").dataset["fits"] = chain.fits ? "yes" : "no";
        byId("proof").textContent = !chain.pieces ? "" : chain.fits
            ? `${chain.pieces} pieces received as they were kept · ${chain.head.slice(0, 12)}`
            : "what was received is not what was kept";
        if (!picture.painted || this.over)
            return;
        const silence = performance.now() - picture.lastAt;
        byId("age").textContent = `picture of ${new Date(Date.now() - silence).toLocaleTimeString()}`;
        if (silence < STALE_MS) {
            const late = Math.round(picture.delayMs / 100) / 10;
            show(late >= 0.5 ? "delayed" : "live", late >= 0.5 ? `Delayed by ${late} s.` : "Live.");
            return;
        }
        const delayed = this.lastMedia && Date.now() - this.lastMedia.getTime() < STALE_MS;
        const text = delayed ? `Delayed by ${Math.round(picture.delayMs / 1000)} s: no picture is shown.`
            : `Interrupted since ${(this.lastMedia ?? new Date()).toLocaleTimeString()}.`;
        show(delayed ? "delayed" : "interrupted", text);
        picture.say(text);
    }
    /** It is over: the picture goes at once. */
    end(cause) {
        if (this.over)
            return;
        this.over = true;
        this.picture.wipe(`Ended: ${cause}.`);
        this.socket?.close();
        window.clearInterval(this.ticking);
        window.clearInterval(this.looking);
        window.clearInterval(this.extending);
        byId("age").textContent = "";
        show("ended", `Ended because ${cause}.`);
        byId("leave").hidden = true;
    }
}
function parse(message) {
    if (message.byteLength < HEAD)
        return undefined;
    const view = new DataView(message);
    if (view.getUint8(0) !== VERSION)
        return undefined;
    return {
        kind: view.getUint8(1), n: view.getUint32(4), receivedMs: Number(view.getBigUint64(8)),
        previous: new Uint8Array(message, 16, 32), data: new Uint8Array(message, HEAD),
    };
}
async function ask(token, path, content) {
    try {
        const answer = await fetch(path, {
            method: "POST", headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" }, body: JSON.stringify(content),
        });
        return await answer.json();
    }
    catch {
        return { reason: "TRY_AGAIN", message: "the console does not answer" };
    }
}
function show(state, text) {
    document.body.dataset["state"] = state;
    const line = byId("state");
    if (line.textContent !== text)
        line.textContent = text;
}
let player;
function begin() {
    const wanted = new URLSearchParams(location.hash.slice(1)); // never a token: only what to watch
    for (const name of ["emergency", "camera"])
        byId(name).value = wanted.get(name) ?? "";
    if (!("VideoDecoder" in window)) {
        show("ended", "This browser cannot show live pictures (it has no WebCodecs): use a current Chrome, Edge, Firefox or Safari over https.");
        byId("ask").hidden = true;
        return;
    }
    byId("ask").addEventListener("submit", (event) => {
        event.preventDefault();
        player?.end("you chose another camera");
        player = new Player(...["token", "emergency", "camera"].map((name) => byId(name).value.trim()));
        byId("leave").hidden = false;
    });
    byId("leave").addEventListener("click", () => player?.end("you stopped watching"));
}
/** For tests: what has been received and painted. */
Object.assign(window, { sightline: { heads, grants, player: () => player } });
begin();
