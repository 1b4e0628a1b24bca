// What every translated module begins with: the types, and the structures that the engine (`exec/abi.rs`) shares with
// the generated code. Both sides must agree field by field.
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long u64;
typedef signed char s8; typedef short s16; typedef int s32; typedef long s64;
typedef unsigned __int128 u128; typedef __int128 s128;
typedef float f32; typedef double f64;
#define IN static inline __attribute__((always_inline))
#define RARE(x) __builtin_expect(!!(x), 0)
struct Ctx;
struct Site { u64 base, limit; u8 *host, *valid; u64 low, high, id, flags, *cells; };
struct Block { u8 *shared; u32 *wrote, *read, *wrote_at, *read_at, *lanes; u32 shared_len, ordered, born, parts;
  u64 launch_born, block_born, block_ordered; };
struct Api {
  u64 (*miss)(Ctx*, u32 site, u64 addr, u32 bytes, u32 kind);
  void (*fail)(Ctx*, u32 site, u32 kind, u64 addr, u32 bytes);
  void (*shared)(Ctx*, u32 site, u32 off, u32 bytes, u32 kind);
  void (*barrier)(Ctx*, u32 site, u32 id, u32 count, u32 kind);
  u32 (*barrier_reduce)(Ctx*, u32 site, u32 id, u32 count, u32 kind, u32 value);
  void (*warp)(Ctx*, u32 site, u32 kind, u32 mask, void* arg);
  u32 (*print)(Ctx*, u32 site, u64 format, u64 args);
  void (*tired)(Ctx*, u32 site);
  void (*global)(Ctx*, u32 site, u64 addr, u32 bytes, u32 kind);
  void (*fence)(Ctx*, u32 site, u32 wide);
  void (*copy)(Ctx*, u32 site, u32 off, u32 bytes, const u8* from);
  void (*copied)(Ctx*, u32 site, u32 open);
};
struct Ctx {
  const Api* api; Block* block; Site* sites; const u8* params; const u64* vars; const u32* places; u8* local;
  u32 local_len, local_top, now, lane, warp, thread;
  u32 tid[3], ntid[3], ctaid[3], nctaid[3];
  u32 params_len, dynamic_shared, total_shared, fuel, rounds, unused; u64 grid, stack_end, stamp;
  void* owner;
};
enum { READ = 1, WRITE = 2, STRONG = 4 };
enum { UNINIT = 1, SHARED_OOB, SHARED_ALIGN, LOCAL_OOB, LOCAL_ALIGN, PARAM_OOB, TRAP, LOCAL_FULL, BAD_BRANCH, BAD_CALL, STACK_FULL };
static const u64 SHARED_WINDOW = 0x5300000000000000ul, LOCAL_WINDOW = 0x5400000000000000ul, CODE_WINDOW = 0x4600000000000000ul;
IN f32 F(u32 x) { return __builtin_bit_cast(f32, x); }
IN u32 B(f32 x) { return __builtin_bit_cast(u32, x); }
IN f64 D(u64 x) { return __builtin_bit_cast(f64, x); }
IN u64 C(f64 x) { return __builtin_bit_cast(u64, x); }
typedef u16 __attribute__((may_alias)) a16; typedef u32 __attribute__((may_alias)) a32; typedef u64 __attribute__((may_alias)) a64;
IN u8 L8(const u8* p) { return *p; }
IN u16 L16(const u8* p) { return *(const a16*)p; }
IN u32 L32(const u8* p) { return *(const a32*)p; }
IN u64 L64(const u8* p) { return *(const a64*)p; }
IN void S8(u8* p, u8 v) { *p = v; }
IN void S16(u8* p, u16 v) { *(a16*)p = v; }
IN void S32(u8* p, u32 v) { *(a32*)p = v; }
IN void S64(u8* p, u64 v) { *(a64*)p = v; }
// Each function checks that the stack of its thread holds its frame, and leaves room for the engine.
#define FRAME(site) { u64 sp; asm volatile("mov %%rsp, %0" : "=r"(sp)); \
  if (RARE(sp < c->stack_end)) c->api->fail(c, site, STACK_FULL, 0, 0); }
