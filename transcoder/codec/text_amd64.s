#include "textflag.h"

// The largest control character, the quote and the backslash.
DATA control<>+0(SB)/8, $0x1f1f1f1f1f1f1f1f
GLOBL control<>(SB), RODATA|NOPTR, $8
DATA quote<>+0(SB)/8, $0x2222222222222222
GLOBL quote<>(SB), RODATA|NOPTR, $8
DATA backslash<>+0(SB)/8, $0x5c5c5c5c5c5c5c5c
GLOBL backslash<>(SB), RODATA|NOPTR, $8

#define CONSTANTS \
	VPBROADCASTQ control<>(SB), Y1;   \
	VPBROADCASTQ quote<>(SB), Y2;     \
	VPBROADCASTQ backslash<>(SB), Y3

// MARKS puts a bit for each special byte of Y0 into R8, and one for each with the high bit into R9.
#define MARKS \
	VPMINUB   Y1, Y0, Y4; \
	VPCMPEQB  Y2, Y0, Y5; \
	VPCMPEQB  Y3, Y0, Y6; \
	VPCMPEQB  Y0, Y4, Y4; \
	VPOR      Y5, Y6, Y5; \
	VPOR      Y4, Y5, Y4; \
	VPMOVMSKB Y4, R8;     \
	VPMOVMSKB Y0, R9

// PAGE goes to a label if 32 bytes at SI+AX would touch another page.
#define PAGE(label) \
	LEAQ (SI)(AX*1), R10; \
	ANDL $4095, R10;      \
	CMPL R10, $4064;      \
	JHI  label

// FOUND adds the place of the lowest mark to AX, and the high bits below it to DX.
#define FOUND \
	TZCNTL R8, R11;     \
	BZHIL  R11, R9, R9; \
	ORL    R9, DX;      \
	ADDQ   R11, AX

// func copyPlain(dst, src *byte, n int) (k int, high uint64)
TEXT ·copyPlain(SB), NOSPLIT, $0-40
	MOVQ dst+0(FP), DI
	MOVQ src+8(FP), SI
	MOVQ n+16(FP), CX
	XORL AX, AX
	XORL DX, DX
	CONSTANTS

loop:
	SUBQ    $32, CX
	JLT     tail
	VMOVDQU (SI)(AX*1), Y0
	VMOVDQU Y0, (DI)(AX*1)
	MARKS
	TESTL   R8, R8
	JNZ     found
	ORL     R9, DX
	ADDQ    $32, AX
	JMP     loop

tail:
	ADDQ    $32, CX
	JZ      done
	PAGE(cross)
	VMOVDQU (SI)(AX*1), Y0
	VMOVDQU Y0, (DI)(AX*1)
	MARKS
	BTSL    CX, R8

found:
	FOUND

done:
	VZEROUPPER
	MOVQ AX, k+24(FP)
	MOVQ DX, high+32(FP)
	RET

cross:
	VZEROUPPER
	MOVQ $-1, k+24(FP)
	MOVQ $0, high+32(FP)
	RET

// func scanPlain(src *byte, n int) (k int, high uint64)
TEXT ·scanPlain(SB), NOSPLIT, $0-32
	MOVQ src+0(FP), SI
	MOVQ n+8(FP), CX
	XORL AX, AX
	XORL DX, DX
	CONSTANTS

loop:
	SUBQ    $32, CX
	JLT     tail
	VMOVDQU (SI)(AX*1), Y0
	MARKS
	TESTL   R8, R8
	JNZ     found
	ORL     R9, DX
	ADDQ    $32, AX
	JMP     loop

tail:
	ADDQ    $32, CX
	JZ      done
	PAGE(cross)
	VMOVDQU (SI)(AX*1), Y0
	MARKS
	BTSL    CX, R8

found:
	FOUND

done:
	VZEROUPPER
	MOVQ AX, k+16(FP)
	MOVQ DX, high+24(FP)
	RET

cross:
	VZEROUPPER
	MOVQ $-1, k+16(FP)
	MOVQ $0, high+24(FP)
	RET
