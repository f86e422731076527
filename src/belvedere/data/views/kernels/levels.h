/* Where several sets of instructions can be compiled into one library and chosen when it runs. */

#if defined(__x86_64__) && defined(__GNUC__)
#define BELVEDERE_X86
#endif
