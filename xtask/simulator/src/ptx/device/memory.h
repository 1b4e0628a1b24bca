// Loads, stores and atomics. Each access site keeps the region that it met last (`Site`), so that the usual access
// costs a few compares; anything else goes to the engine, which answers or ends the launch.
IN u64 place(Ctx* c, u32 s, u64 a, u32 n, u32 kind) {
  Site* e = c->sites + s; u64 o = a - e->base;
  if (RARE(o > e->limit || (a & (n - 1)))) o = c->api->miss(c, s, a, n, kind);
  if (o < e->low) e->low = o;
  if (o + n > e->high) e->high = o + n;
  return o;
}
IN int known(const u8* v, u32 n) {
  if (n == 1) return *v & 1;
  if (n == 2) return L16(v) == 0x0101;
  if (n == 4) return L32(v) == 0x01010101u;
  const u64 all = 0x0101010101010101ul;
  if (n == 8) return L64(v) == all;
  return L64(v) == all && L64(v + 8) == all;
}
IN void learn(u8* v, u32 n) { __builtin_memset(v, 1, n); }
// Races in global memory, where they are looked for: else a site has no cells. Each byte has two records,
// (tick << 30 | thread << 20 | mode << 18 | site): who wrote it last, and who has read it since. `exec/global.rs` says
// what the modes mean; here are the usual cases.
IN int mine(u64 x, u64 now) { return !((x ^ now) >> 20 & 1023); }
IN int writer_is_ordered(const Block* b, u64 w, u64 now) {
  return (w < b->launch_born) | ((w >= b->block_born) & ((w < b->block_ordered) | mine(w, now)));
}
IN int same_cells(const u64* p, u32 n) { int same = 1; for (u32 i = 1; i < n; i++) same &= (p[2 * i] == p[0]) & (p[2 * i + 1] == p[1]); return same; }
IN void note_read(u64* p, u32 n, u64 v) { for (u32 i = 0; i < n; i++) p[2 * i + 1] = v; }
IN void global_read(Ctx* c, u32 s, u64 a, u64 o, u32 n, u32 kind) {
  u64* p = c->sites[s].cells + 2 * o; const Block* b = c->block;
  const u64 r = p[1], now = c->stamp | (s & 0x3ffff); const u32 mode = r >> 18 & 3;
  if (RARE((kind & STRONG) || !(same_cells(p, n) & writer_is_ordered(b, p[0], now)))) c->api->global(c, s, a, n, READ | kind);
  else if (r == now) {}
  else if (r < b->launch_born) note_read(p, n, now);
  else if ((r < b->block_born) | (mode == 3)) { if (r < b->block_ordered) note_read(p, n, now | 3 << 18); }
  else if ((r < b->block_ordered) | ((mode == 0) & mine(r, now))) note_read(p, n, now);
  else if (mode == 2) {}
  else if ((r ^ now) >> 25 & 31) note_read(p, n, now | 2 << 18);
  else if (mode != 1 || (r ^ now) >> 30) note_read(p, n, now | 1 << 18);
}
IN void global_write(Ctx* c, u32 s, u64 a, u64 o, u32 n, u32 kind) {
  u64* p = c->sites[s].cells + 2 * o; const Block* b = c->block;
  const u64 r = p[1], now = c->stamp | (s & 0x3ffff); const u32 mode = r >> 18 & 3;
  const int unread = (r < b->launch_born) | ((r >= b->block_born) & (mode != 3) & ((r < b->block_ordered) | ((mode == 0) & mine(r, now))));
  if (RARE((kind & STRONG) || !(same_cells(p, n) & writer_is_ordered(b, p[0], now) & unread))) c->api->global(c, s, a, n, WRITE | kind);
  else for (u32 i = 0; i < n; i++) { p[2 * i] = now; p[2 * i + 1] = 0; }
}
#define COUNTED(name, n) static __attribute__((noinline)) void name##_##n(Ctx* c, u32 s, u64 a, u64 o, u32 k) { name(c, s, a, o, n, k); }
#define COUNTS(name) COUNTED(name, 1) COUNTED(name, 2) COUNTED(name, 4) COUNTED(name, 8) COUNTED(name, 16) \
  IN void name##_by(Ctx* c, u32 s, u64 a, u64 o, u32 n, u32 k) { if (!c->sites[s].cells) return; switch (n) { \
    case 1: name##_1(c, s, a, o, k); break; case 2: name##_2(c, s, a, o, k); break; case 4: name##_4(c, s, a, o, k); break; \
    case 8: name##_8(c, s, a, o, k); break; default: name##_16(c, s, a, o, k); } }
COUNTS(global_read) COUNTS(global_write)
IN void global_both(Ctx* c, u32 s, u64 a, u32 n) { if (c->sites[s].cells) c->api->global(c, s, a, n, READ | WRITE | STRONG); }
IN void fence(Ctx* c, u32 s, u32 wide) { c->api->fence(c, s, wide); }
IN u8* ld_global_as(Ctx* c, u32 s, u64 a, u32 n, u32 k) {
  u64 o = place(c, s, a, n, READ); Site* e = c->sites + s;
  global_read_by(c, s, a, o, n, k);
  if (RARE(e->valid && !known(e->valid + o, n))) c->api->fail(c, s, UNINIT, a, n);
  return e->host + o;
}
IN u8* st_global_as(Ctx* c, u32 s, u64 a, u32 n, u32 k) {
  u64 o = place(c, s, a, n, WRITE); Site* e = c->sites + s;
  global_write_by(c, s, a, o, n, k);
  if (e->valid) learn(e->valid + o, n);
  return e->host + o;
}
IN u8* rw_global(Ctx* c, u32 s, u64 a, u32 n, u32) {
  u64 o = place(c, s, a, n, READ | WRITE); Site* e = c->sites + s;
  global_both(c, s, a, n);
  if (RARE(e->valid && !known(e->valid + o, n))) c->api->fail(c, s, UNINIT, a, n);
  return e->host + o;
}
// All cells of an access hold the same record: the usual case, since an array is accessed in one width.
IN int alike(const u32* w, u32 n) {
  if (n == 1) return 1;
  const u64 x = L64((const u8*)w);
  int same = (u32)x == (u32)(x >> 32);
  for (u32 i = 2; i < n; i += 2) same &= x == L64((const u8*)(w + i));
  return same;
}
IN void spread(u32* w, u32 n, u32 v) { for (u32 i = 0; i < n; i++) w[i] = v; }
IN u8* shared_place(Ctx* c, u32 s, u64 a, u32 n) {
  const Block* b = c->block;
  if (RARE(a > b->shared_len || b->shared_len - a < n)) c->api->fail(c, s, SHARED_OOB, a, n);
  if (RARE(a & (n - 1))) c->api->fail(c, s, SHARED_ALIGN, a, n);
  return b->shared + a;
}
// A cell is (clock << 12 | thread << 2 | mode). `born` and `ordered` are the clocks of the start of the block and of
// its last whole barrier. Bytes that cp.async has yet to write have a record of ones, which is nobody's own.
IN u8* ld_shared_as(Ctx* c, u32 s, u64 a, u32 n, u32 kind) {
  u8* p = shared_place(c, s, a, n); const Block* b = c->block;
  const u32 *w = b->wrote + a; u32* r = b->read + a; const u32 x = *w, y = *r, now = c->now;
  const int mine = !((x ^ now) & 0xffe);
  if (RARE(kind & STRONG) || !(alike(w, n) & alike(r, n) & (x >= b->born) & ((x < b->ordered) | mine)))
    c->api->shared(c, s, a, n, kind | READ);
  else if (y == now || (y >= b->ordered && (y & 2))) {}
  else if (y < b->ordered) { spread(r, n, now); spread(b->read_at + a, n, s); }
  else if (!((y ^ now) >> 7)) {
    // Another lane of this warp has read it since the last synchronisation: the mask takes this one too.
    u32* l = b->lanes + a; const u32 me = 1u << c->lane;
    if (y & 1) for (u32 i = 0; i < n; i++) l[i] |= me;
    else { spread(l, n, me | 1u << (y >> 2 & 31)); spread(r, n, y | 1); }
  }
  else if (((y ^ now) & 0xf80) && !b->parts) spread(r, n, now | 2);
  else c->api->shared(c, s, a, n, kind | READ);
  return p;
}
IN u8* st_shared_as(Ctx* c, u32 s, u64 a, u32 n, u32 kind) {
  u8* p = shared_place(c, s, a, n); const Block* b = c->block;
  u32* w = b->wrote + a; const u32* r = b->read + a; const u32 x = *w, y = *r, now = c->now;
  const int mine = !((x ^ now) & 0xffe), unread = (y < b->ordered) | !((y ^ now) & 0xfff);
  if (RARE(kind & STRONG) || !(alike(w, n) & alike(r, n) & ((x < b->ordered) | mine) & unread))
    c->api->shared(c, s, a, n, kind | WRITE);
  else { spread(w, n, now); spread(b->wrote_at + a, n, s); }
  return p;
}
// One function for each width: a call costs less than the check, and unrolled loops would be slow to compile.
#define WIDTH(name, n) static __attribute__((noinline)) u8* name##_##n(Ctx* c, u32 s, u64 a, u32 k) { return name##_as(c, s, a, n, k); }
#define WIDTHS(name) WIDTH(name, 1) WIDTH(name, 2) WIDTH(name, 4) WIDTH(name, 8) WIDTH(name, 16) \
  IN u8* name(Ctx* c, u32 s, u64 a, u32 n, u32 k) { switch (n) { case 1: return name##_1(c, s, a, k); \
    case 2: return name##_2(c, s, a, k); case 4: return name##_4(c, s, a, k); case 8: return name##_8(c, s, a, k); \
    default: return name##_16(c, s, a, k); } }
WIDTHS(ld_shared) WIDTHS(st_shared) WIDTHS(ld_global) WIDTHS(st_global)
IN u8* rw_shared(Ctx* c, u32 s, u64 a, u32 n, u32) {
  u8* p = shared_place(c, s, a, n); c->api->shared(c, s, a, n, READ | WRITE | STRONG); return p;
}
IN u8* local_place(Ctx* c, u32 s, u64 a, u32 n) {
  if (RARE(a > c->local_top || c->local_top - a < n)) c->api->fail(c, s, LOCAL_OOB, a, n);
  if (RARE(a & (n - 1))) c->api->fail(c, s, LOCAL_ALIGN, a, n);
  return c->local + a;
}
IN u8* ld_local(Ctx* c, u32 s, u64 a, u32 n, u32) { return local_place(c, s, a, n); }
IN u8* st_local(Ctx* c, u32 s, u64 a, u32 n, u32) { return local_place(c, s, a, n); }
IN u8* rw_local(Ctx* c, u32 s, u64 a, u32 n, u32) { return local_place(c, s, a, n); }
IN const u8* ld_param(Ctx* c, u32 s, u64 a, u32 n, u32) {
  if (RARE(a > c->params_len || c->params_len - a < n)) c->api->fail(c, s, PARAM_OOB, a, n);
  return c->params + a;
}
#define GENERIC(name) static __attribute__((noinline)) u8* name##_generic(Ctx* c, u32 s, u64 a, u32 n, u32 k) { \
  if ((a >> 56) == 0x53) return name##_shared(c, s, a - SHARED_WINDOW, n, k); \
  if ((a >> 56) == 0x54) return name##_local(c, s, a - LOCAL_WINDOW, n, k); \
  return name##_global(c, s, a, n, k); }
GENERIC(ld) GENERIC(st) GENERIC(rw)
// The frame of a function in the local memory of its thread.
IN u32 enter(Ctx* c, u32 s, u32 n) {
  u32 at = c->local_top;
  if (RARE(c->local_len - at < n)) c->api->fail(c, s, LOCAL_FULL, at, n);
  __builtin_memset(c->local + at, 0xff, n); c->local_top = at + n; return at;
}
#define UPDATE(T, W, name, expr) IN T name(u8* p, T b) { W* q = (W*)p; T a = __atomic_load_n(q, __ATOMIC_RELAXED); \
  while (!__atomic_compare_exchange_n(q, &a, (T)(expr), 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {} return a; }
#define UPDATES(U, S, A, N) \
  UPDATE(U, A, at_add##N, a + b) UPDATE(U, A, at_and##N, a & b) UPDATE(U, A, at_or##N, a | b) \
  UPDATE(U, A, at_xor##N, a ^ b) UPDATE(U, A, at_exch##N, b) UPDATE(U, A, at_min##N, a < b ? a : b) \
  UPDATE(U, A, at_max##N, a > b ? a : b) UPDATE(U, A, at_smin##N, (S)a < (S)b ? a : b) \
  UPDATE(U, A, at_smax##N, (S)a > (S)b ? a : b) UPDATE(U, A, at_inc##N, a >= b ? 0 : a + 1) \
  UPDATE(U, A, at_dec##N, a == 0 || a > b ? b : a - 1) \
  IN U at_cas##N(u8* p, U b, U d) { U a = b; \
    __atomic_compare_exchange_n((A*)p, &a, d, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); return a; }
UPDATES(u16, s16, a16, 16) UPDATES(u32, s32, a32, 32) UPDATES(u64, s64, a64, 64)
UPDATE(u32, a32, at_addf32, B(F(a) + F(b)))
UPDATE(u64, a64, at_addf64, C(D(a) + D(b)))
